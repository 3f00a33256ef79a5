"""An anchor: the weights that Deltas are taken from, their outer optimizer and their version.

All islands share one per fragment, or each island has its own (gossip).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.outer import Outer
from lowcomm.state.digest import Digest
from lowcomm.state.fragment import Fragment
from lowcomm.state.norms import l2_norm


class Anchor:
    """Weights of one fragment: fp32, flat, of `fragment.size` elements, on the fragment's device."""

    optimizer: Optimizer
    """The outer optimizer, over `params`."""

    def __init__(self, fragment: Fragment, index: int, local: tuple[int, ...]) -> None:
        self.fragment = fragment
        self.index = index
        """The fragment's number."""
        self.local = local
        """Local islands whose anchor it is."""
        self.version = 0
        """Outer steps taken, or adoptions of weights that came from elsewhere."""
        self.weights = fragment.pool.new(fragment.size)
        self.named = fragment.views(self.weights)
        """Views of `weights` by name."""
        self.params = [v.detach() for v in self.named.values()]
        self._views = list(self.named.values())

    def build_outer(self, outer: Outer) -> None:
        """Start the outer optimizer."""
        self.optimizer = outer.build(self.params)

    @torch.no_grad()
    def delta_of(self, tensors: Sequence[Tensor], island: int) -> tuple[Tensor, float]:
        """`anchor - local` in fp32 for local island `island`, and its L2 norm.

        Flat, of `fragment.size` elements, valid until the next call. The norm is inf or NaN if any element is, or is
        absurd.
        """
        flat = self.fragment.delta(island)
        norms: list[Tensor] = []
        start = 0
        for weight, p in zip(self._views, tensors, strict=True):
            view = flat[start : start + weight.numel()].view(weight.shape)
            start += weight.numel()
            torch.sub(weight, p.detach().to(weight.device), out=view)
            norms.append(l2_norm(view))
        return flat, float(torch.linalg.vector_norm(torch.stack(norms)))

    def step(self, update: Tensor) -> None:
        """Take the outer step along `update` (flat, fp32, of `fragment.size` elements): `p.grad = update`, no copy."""
        start = 0
        for p in self.params:
            p.grad = update[start : start + p.numel()].view(p.shape)
            start += p.numel()
        self.optimizer.step()
        for p in self.params:
            p.grad = None
        self.version += 1

    @torch.no_grad()
    def read(self, tensors: Sequence[Tensor]) -> bytes:
        """Anchor <- these (any float dtype); returns their digest."""
        hashed = Digest()
        for view, p in zip(self._views, tensors, strict=True):
            view.copy_(p)
            hashed.update(view)
        return hashed.value()

    @torch.no_grad()
    def write(self, replicas: Sequence[Sequence[Tensor]]) -> bytes:
        """Each replica's tensors <- anchor, cast to their dtype; returns the digest of the anchor.

        Tensor by tensor, so that the digest reads what is in the cache.
        """
        hashed = Digest()
        for index, view in enumerate(self._views):
            for tensors in replicas:
                tensors[index].copy_(view)
            hashed.update(view)
        return hashed.value()

    @torch.no_grad()
    def merge(
        self,
        replicas: Sequence[Sequence[Tensor]],
        starts: Sequence[Tensor] | None,
        alpha: float | None,
        mixed: Sequence[bool],
    ) -> bytes:
        """Move each replica's tensors, which trained on while this version was made, towards it.

        alpha: `alpha local + (1 - alpha) anchor`; None: `anchor + (local - start)`, `starts` flat, one per replica.
        mixed: whether each replica does; the others (left out, or without a step since) take the anchor as it is.
        Returns the digest of the anchor.
        """
        for i, copies in enumerate(replicas):
            origins = self._views if starts is None else list(self.fragment.views(starts[i]).values())
            for view, origin, p in zip(self._views, origins, copies, strict=True):
                if not mixed[i]:
                    p.copy_(view)
                elif alpha is None:
                    p.copy_(p.to(view.device, torch.float32).sub(origin).add_(view))
                else:
                    p.copy_(p.to(view.device, torch.float32).mul(alpha).add_(view, alpha=1 - alpha))
        return self.digest()

    @torch.no_grad()
    def go_on_from(self, replicas: Sequence[Sequence[Tensor]], deltas: Sequence[Tensor], share: float) -> None:
        """Each replica's tensors <- `anchor - share * delta`: deltas flat, one per replica."""
        for copies, flat in zip(replicas, deltas, strict=True):
            for weight, d, p in zip(self._views, self.fragment.views(flat).values(), copies, strict=True):
                p.copy_(torch.sub(weight, d, alpha=share))

    @torch.no_grad()
    def take_back(self, replicas: Sequence[Sequence[Tensor]], deltas: Sequence[Tensor], share: float) -> None:
        """Undo `go_on_from`: give each replica the part of its own pseudo-gradient that it went on without."""
        for copies, flat in zip(replicas, deltas, strict=True):
            for d, p in zip(self.fragment.views(flat).values(), copies, strict=True):
                p.copy_(torch.sub(p.to(d.device, torch.float32), d, alpha=1 - share))

    @torch.no_grad()
    def starts(self, deltas: Sequence[Tensor], share: float) -> list[Tensor]:
        """Local weights with which islands went on after these pseudo-gradients, in their place.

        To a rounding error for a share of 1, where they were left as they are; see `go_on_from` otherwise.
        """
        return [torch.sub(self.weights, d, alpha=share, out=d) for d in deltas]

    @torch.no_grad()
    def keep_apart(self, tensors: Sequence[Tensor], residual: Tensor, share: float) -> None:
        """This replica's tensors -= share * residual (flat, fp32): it keeps what the others were not sent."""
        for view, p in zip(self.fragment.views(residual).values(), tensors, strict=True):
            p.copy_(torch.sub(p.to(view.device, torch.float32), view, alpha=share))

    def digest(self) -> bytes:
        """Digest of the weights."""
        hashed = Digest()
        for view in self._views:
            hashed.update(view)
        return hashed.value()
