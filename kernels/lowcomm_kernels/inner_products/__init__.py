"""Inner products of K fp32 vectors with each other, G[i,j] = <x_i, x_j>, with the same bits on every machine.

A product of two fp32 values is exact in fp64. Element e is added to sum e mod LANES, in order of e; `fold_lanes` adds
the sums up in halves. So the bits depend on no vector width, number of threads or fused instruction, G is symmetric,
and equal vectors are exactly 0 apart. 4 K bytes per element are read once; K (K + 1) / 2 products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_rows, choose_path

LANES = 4096
"""Sums that are kept beside each other, a power of two; how elements are dealt to them is a part of the bits of G."""


def no_lanes(rows: int, device: torch.device) -> Tensor:
    """fp64 [K, K, LANES] of zeros, to add to."""
    return torch.zeros(rows, rows, LANES, dtype=torch.float64, device=device)


def add_products(rows: Tensor, lanes: Tensor, *, path: Path | None = None) -> None:
    """Add the products of fp32 [K, n] to fp64 [K, K, LANES], of which the upper triangle is kept (i <= j).

    Vectors longer than a call takes come in parts of a multiple of LANES elements each, but for the last.
    On a GPU it is eager torch: no rule's choice has been found to cost enough there for a kernel of its own.

    Raises:
        ValueError: sizes or types do not fit.
    """
    check_rows("rows", rows, torch.float32, None, None)
    if lanes.shape != (len(rows), len(rows), LANES) or lanes.dtype != torch.float64 or not lanes.is_contiguous():
        raise ValueError(f"lanes: expected dense fp64 {(len(rows), len(rows), LANES)}, got {tuple(lanes.shape)}")
    if rows.numel() == 0:
        return
    if rows.device.type == "cpu" and choose_path(rows.device, path) == "numba":
        from lowcomm_kernels.inner_products import numba as impl
    else:
        from lowcomm_kernels.inner_products import reference as impl
    impl.add_products(rows, lanes)


def fold_lanes(lanes: Tensor) -> Tensor:
    """The table of fp64 [K, K, LANES]: fp64 [K, K] on the CPU, symmetric."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    upper = lanes[..., 0].cpu().triu()
    return upper + upper.triu(1).T
