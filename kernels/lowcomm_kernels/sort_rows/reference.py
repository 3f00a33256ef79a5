"""Eager torch: the specification in code."""

from __future__ import annotations

import torch
from torch import Tensor


def sort_rows(rows: Tensor) -> None:
    """Sort along dimension 0, in place."""
    ordered = _turned(rows.view(torch.int32)).sort(dim=0).values
    rows.view(torch.int32).copy_(_turned(ordered))


def _turned(bits: Tensor) -> Tensor:
    """Bits of fp32 -> integers in their order, and back: the magnitude of negative values counts down."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
