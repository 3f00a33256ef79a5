"""A fragment: the named tensors that are exchanged together, as views of flat fp32 vectors.

Flat, since one exchange of one vector beats a hundred small ones; views, since codecs and outer optimizers want shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowcomm.state.buffer_pool import BufferPool
from lowcomm.types import Delta


class Fragment:
    """Names, shapes and lent vectors of some tensors; it holds no weights (`Anchor` does).

    Vectors are fp32 of `size` elements: `numel`, padded with zeros to a multiple of `islands`, on `device`. `mean` and
    the pseudo-gradients are lent by the pool while an exchange needs them; pool None: the fragment has its own.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        islands: int,
        device: torch.device,
        covers: Sequence[str] | None = None,
        pool: BufferPool | None = None,
    ) -> None:
        self.names = tuple(params)
        self.covers = tuple(self.names if covers is None else covers)
        """Parameters that the ranks of an island hold parts of in it; `names` are those with a part here."""
        self.shapes = tuple(p.shape for p in params.values())
        self.numel = sum(p.numel() for p in params.values())
        self.size = -(-self.numel // islands) * islands
        self.device = device
        self.pool = BufferPool(device) if pool is None else pool
        self._deltas: dict[int, Tensor] = {}
        self._mean: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Where the aggregate of all islands' pseudo-gradients is put: fp32, flat, of `size` elements."""
        if self._mean is None:
            self._mean = self._borrow()
        return self._mean

    def overwrite_delta(self) -> None:
        """Let the mean take the place of the first local island's pseudo-gradient, which nobody needs afterwards."""
        if self._mean is None:
            self._mean = self.delta(0)

    def delta(self, island: int) -> Tensor:
        """Where the pseudo-gradient of this local island is kept: fp32, flat, of `size` elements."""
        if island not in self._deltas:
            self._deltas[island] = self._borrow()
        return self._deltas[island]

    def release(self) -> None:
        """Give the vectors back: mean and pseudo-gradients are gone."""
        lent = {id(t): t for t in (*self._deltas.values(), *(() if self._mean is None else (self._mean,)))}
        self._deltas, self._mean = {}, None
        for flat in lent.values():
            self.pool.give(flat)

    def _borrow(self) -> Tensor:
        flat = self.pool.take(self.size)
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
    def flatten(self, tensors: Sequence[Tensor], island: int) -> Tensor:
        """Tensors of this fragment's shapes as one fp32 vector; valid until the next call for this local island."""
        flat = self.delta(island)
        for view, t in zip(self.views(flat).values(), tensors, strict=True):
            view.copy_(t)
        return flat

    @torch.no_grad()
    def unflatten(self, flat: Tensor, tensors: Sequence[Tensor]) -> None:
        """These tensors <- `flat`, cast to their dtype."""
        for view, t in zip(self.views(flat).values(), tensors, strict=True):
            t.copy_(view)
