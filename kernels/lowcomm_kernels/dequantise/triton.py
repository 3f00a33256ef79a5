"""GPU path: one program for a tile of blocks."""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.blocks_triton import WARPS, launches, load_scales, load_tile, store_tile
from lowcomm_kernels.quantise.codes_triton import load_levels


@triton.jit
def dequantise_kernel(
    codes, scales, out, n, weight, first_tile,
    ACCUMULATE: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    scale = load_scales(scales, start, n, ROWS, BLOCK, MASKED)
    v = load_levels(codes, start, n, BITS, ROWS, BLOCK, WIDTH, MASKED) * scale[:, None]
    if ACCUMULATE:
        v = load_tile(out, start, n, ROWS, BLOCK, WIDTH, MASKED) + weight * v
    store_tile(out, v, start, n, ROWS, BLOCK, WIDTH, MASKED)


def _launch(codes: Tensor, scales: Tensor, out: Tensor, weight: float, bits: int, block: int, accumulate: bool) -> None:
    rows, width, parts = launches(out.numel(), block)
    for first, count, masked in parts:
        dequantise_kernel[(count,)](
            codes, scales, out, out.numel(), weight, first, accumulate, bits, rows, block, width, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def dequantise(codes: Tensor, scales: Tensor, out: Tensor, *, bits: int, block: int) -> None:
    """Fill `out`."""
    _launch(codes, scales, out, 0.0, bits, block, False)


def dequantise_accumulate(codes: Tensor, scales: Tensor, acc: Tensor, *, weight: float, bits: int, block: int) -> None:
    """Add to `acc`."""
    _launch(codes, scales, acc, weight, bits, block, True)
