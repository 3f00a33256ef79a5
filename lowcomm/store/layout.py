"""How the named tensors of a fragment lie in one flat fp32 vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowcomm.types import Delta


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names and shapes of a fragment, in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Layout:
        """The layout of these tensors."""
        return cls(names=tuple(tensors), shapes=tuple(tuple(t.shape) for t in tensors.values()))

    @cached_property
    def numel(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    def views(self, flat: Tensor) -> Delta:
        """Named views of a flat vector of `numel` elements."""
        views: Delta = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = math.prod(shape)
            views[name] = flat[start : start + size].view(shape)
            start += size
        return views

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of these shapes as one new fp32 vector on the CPU."""
        flat = torch.empty(self.numel)
        for view, t in zip(self.views(flat).values(), tensors, strict=True):
            view.copy_(t.detach())
        return flat
