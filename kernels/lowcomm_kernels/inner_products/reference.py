"""Eager torch: the specification in code."""

from __future__ import annotations

from torch import Tensor


def add_products(rows: Tensor, lanes: Tensor) -> None:
    """Add to `lanes`; what is below its diagonal is added, too."""
    width = lanes.shape[-1]
    for start in range(0, rows.shape[1], width):
        part = rows[:, start : start + width].double()
        lanes[..., : part.shape[1]].addcmul_(part[:, None], part[None])
