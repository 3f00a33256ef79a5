"""A fragment: the part of the model that is synchronised together, as flat fp32 vectors with named views.

Flat, since one exchange of one vector beats a hundred small ones; views, since codecs and outer optimizers want shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.round.digest import Digest
from lowcomm.round.scratch import Scratch
from lowcomm.types import Delta


class Fragment:
    """Global weights, their pseudo-gradient scratch and the outer parameters of some named tensors.

    `weights` is fp32 of `size` elements (padded with zeros to a multiple of `islands`), on the outer device.
    `mean` and the pseudo-gradients are lent by `scratch` while an exchange needs them; None: the fragment has its own.
    """

    def __init__(
        self,
        params: dict[str, Tensor],
        islands: int,
        device: torch.device,
        covers: Sequence[str] | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        self.names = tuple(params)
        self.covers = tuple(self.names if covers is None else covers)
        """Parameters that the ranks of an island hold parts of in it; `names` are those with a part here."""
        self.shapes = tuple(p.shape for p in params.values())
        self.numel = sum(p.numel() for p in params.values())
        self.size = -(-self.numel // islands) * islands
        self.device = device
        self._scratch = Scratch(device) if scratch is None else scratch
        self._deltas: list[Tensor] = []
        self._mean: Tensor | None = None
        self.weights = self._scratch.new(self.size)
        self.outer_params = [v.detach() for v in self.views(self.weights).values()]
        self._weight_views = list(self.views(self.weights).values())

    @property
    def mean(self) -> Tensor:
        """Where the aggregate of all islands' pseudo-gradients is put: fp32, flat, of `size` elements."""
        if self._mean is None:
            self._mean = self._borrow()
        return self._mean

    def overwrite_delta(self) -> None:
        """The mean takes the place of the first local island's pseudo-gradient, which nobody needs afterwards."""
        if self._mean is None:
            self._mean = self.scratch(0)

    def release(self) -> None:
        """Give the scratch back: mean and pseudo-gradients are gone."""
        lent = {id(t): t for t in (*self._deltas, *(() if self._mean is None else (self._mean,)))}
        self._deltas, self._mean = [], None
        for p in self.outer_params:
            p.grad = None
        for flat in lent.values():
            self._scratch.give(flat)

    def _borrow(self) -> Tensor:
        flat = self._scratch.take(self.size)
        flat[self.numel :].zero_()
        return flat

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
        for view, t in zip(self.views(self.mean).values(), tensors, strict=True):
            t.copy_(view)

    def scratch(self, island: int) -> Tensor:
        """Where the pseudo-gradient of this local island is kept: fp32, flat, of `size` elements."""
        while len(self._deltas) <= island:
            self._deltas.append(self._borrow())
        return self._deltas[island]

    def set_outer_grad(self) -> None:
        """`p.grad = mean` for the outer optimizer: views, no copy."""
        for p, g in zip(self.outer_params, self.views(self.mean).values(), strict=True):
            p.grad = g
