"""A fragment: the part of the model that is synchronised together, as flat fp32 vectors with named views.

Flat, since one exchange of one vector beats a hundred small ones; views, since codecs and outer optimizers want shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from lowcomm.digest import Digest
from lowcomm.types import Delta


class Fragment:
    """Global weights, their pseudo-gradient scratch and the outer parameters of some named tensors.

    `weights` is fp32 of `size` elements (padded with zeros to a multiple of `islands`), on the outer device.
    """

    def __init__(
        self, params: dict[str, Tensor], islands: int, device: torch.device, covers: Sequence[str] | None = None
    ) -> None:
        self.names = tuple(params)
        self.covers = tuple(self.names if covers is None else covers)
        """Parameters that the ranks of an island hold parts of in it; `names` are those with a part here."""
        self.shapes = tuple(p.shape for p in params.values())
        self.numel = sum(p.numel() for p in params.values())
        self.size = -(-self.numel // islands) * islands
        self.device = device
        self.weights = self._empty()
        self.deltas: list[Tensor] = []
        self.outer_params = [v.detach() for v in self.views(self.weights).values()]
        self._weight_views = list(self.views(self.weights).values())

    @cached_property
    def mean(self) -> Tensor:
        """Where the islands' mean is put; made when there is one."""
        return self._empty()

    @cached_property
    def _mean_views(self) -> list[Tensor]:
        return list(self.views(self.mean).values())

    def _empty(self) -> Tensor:
        flat = torch.zeros(self.size, dtype=torch.float32)
        return flat.pin_memory() if self.device.type == "cpu" and torch.cuda.is_available() else flat.to(self.device)

    def views(self, flat: Tensor) -> Delta:
        """Named views of a flat vector of `size` elements."""
        views: Delta = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            views[name] = flat[start : start + shape.numel()].view(shape)
            start += shape.numel()
        return views

    @torch.no_grad()
    def read(self, params: Sequence[Tensor]) -> bytes:
        """Global weights <- these (any float dtype); returns their digest."""
        hashed = Digest()
        for view, p in zip(self._weight_views, params, strict=True):
            view.copy_(p)
            hashed.update(view)
        return hashed.value()

    @torch.no_grad()
    def write(self, replicas: Sequence[Sequence[Tensor]]) -> bytes:
        """Each replica's tensors <- global weights, cast to their dtype; returns the digest of the global weights.

        Tensor by tensor, so that the digest reads what is in the cache.
        """
        hashed = Digest()
        for view, copies in zip(self._weight_views, zip(*replicas, strict=True), strict=True):
            for p in copies:
                p.copy_(view)
            hashed.update(view)
        return hashed.value()

    @torch.no_grad()
    def go_on_from(self, replicas: Sequence[Sequence[Tensor]], deltas: Sequence[Tensor], share: float) -> None:
        """Each replica's tensors <- `global - share * delta`: deltas flat, one per replica."""
        for copies, flat in zip(replicas, deltas, strict=True):
            for weight, d, p in zip(self._weight_views, self.views(flat).values(), copies, strict=True):
                p.copy_(torch.sub(weight, d, alpha=share))

    @torch.no_grad()
    def keep_apart(self, params: Sequence[Tensor], residual: Tensor, share: float) -> None:
        """This replica's tensors -= share * residual (flat, fp32): it keeps what the others were not sent."""
        for view, p in zip(self.views(residual).values(), params, strict=True):
            p.copy_(torch.sub(p.to(self.device, torch.float32), view, alpha=share))

    @torch.no_grad()
    def take_back(self, replicas: Sequence[Sequence[Tensor]], deltas: Sequence[Tensor], share: float) -> None:
        """Undo `go_on_from`: give each replica the part of its own pseudo-gradient that it went on without."""
        for copies, flat in zip(replicas, deltas, strict=True):
            for d, p in zip(self.views(flat).values(), copies, strict=True):
                p.copy_(torch.sub(p.to(self.device, torch.float32), d, alpha=1 - share))

    @torch.no_grad()
    def starts(self, deltas: Sequence[Tensor], share: float) -> list[Tensor]:
        """Local weights with which islands went on after these pseudo-gradients, in their place.

        To a rounding error for a share of 1, where they were left as they are; see `go_on_from` otherwise.
        """
        return [torch.sub(self.weights, d, alpha=share, out=d) for d in deltas]

    @torch.no_grad()
    def merge(
        self,
        replicas: Sequence[Sequence[Tensor]],
        starts: Sequence[Tensor] | None,
        alpha: float | None,
        mixed: Sequence[bool],
    ) -> bytes:
        """Each replica's tensors, which trained on while these global weights were made, come closer to them.

        alpha: `alpha local + (1 - alpha) global`; None: `global + (local - start)`, `starts` flat, one per replica.
        mixed: whether each replica does; the others (left out, or without a step since) take the global weights as
        they are. Returns the digest of the global weights.
        """
        for i, copies in enumerate(replicas):
            origins = self._weight_views if starts is None else list(self.views(starts[i]).values())
            for view, origin, p in zip(self._weight_views, origins, copies, strict=True):
                if not mixed[i]:
                    p.copy_(view)
                elif alpha is None:
                    p.copy_(p.to(self.device, torch.float32).sub(origin).add_(view))
                else:
                    p.copy_(p.to(self.device, torch.float32).mul(alpha).add_(view, alpha=1 - alpha))
        return self.digest()

    def digest(self) -> bytes:
        """Digest of the global weights."""
        hashed = Digest()
        for view in self._weight_views:
            hashed.update(view)
        return hashed.value()

    @torch.no_grad()
    def compute_delta(self, params: Sequence[Tensor], island: int) -> tuple[Tensor, float]:
        """`global - local` in fp32 for local island `island`, and its L2 norm.

        Flat, of `size` elements, valid until the next call. The norm is inf or NaN if any element is, or is absurd.
        """
        flat = self.scratch(island)
        norms: list[Tensor] = []
        for view, weight, p in zip(self.views(flat).values(), self._weight_views, params, strict=True):
            torch.sub(weight, p.detach().to(self.device), out=view)
            norms.append(torch.linalg.vector_norm(view))
        return flat, float(torch.linalg.vector_norm(torch.stack(norms)))

    @torch.no_grad()
    def flatten(self, tensors: Sequence[Tensor], island: int) -> Tensor:
        """Tensors of this fragment's shapes as one fp32 vector; valid until the next call for this local island."""
        flat = self.scratch(island)
        for view, t in zip(self.views(flat).values(), tensors, strict=True):
            view.copy_(t)
        return flat

    @torch.no_grad()
    def unflatten_mean(self, tensors: Sequence[Tensor]) -> None:
        """These <- `mean`, cast to their dtype."""
        for view, t in zip(self._mean_views, tensors, strict=True):
            t.copy_(view)

    def scratch(self, island: int) -> Tensor:
        """Where the pseudo-gradient of this local island is kept: fp32, flat, of `size` elements."""
        while len(self.deltas) <= island:
            self.deltas.append(self._empty())
        return self.deltas[island]

    def set_outer_grad(self) -> None:
        """`p.grad = mean` for the outer optimizer: views, no copy."""
        for p, g in zip(self.outer_params, self._mean_views, strict=True):
            p.grad = g
