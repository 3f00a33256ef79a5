"""GPU path: one program for a tile of blocks, every input read once; options keep the bytes of the reference."""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.blocks_triton import (
    WARPS,
    absmax_or_flag,
    launches,
    load_tile,
    new_flag,
    raise_flag,
    store_rows,
    store_tile,
    widen,
)
from lowcomm_kernels.quantise.codes_triton import levels_of, round_codes, scale_of, store_codes


@triton.jit
def quantise_kernel(
    x, codes, scales, flag, n, seed, offset, first_tile,
    BITS: tl.constexpr, STOCHASTIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    LOG: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    v = load_tile(x, start, n, ROWS, BLOCK, WIDTH, MASKED)
    top = absmax_or_flag(v, start, flag, ROWS, BLOCK, WIDTH)
    bits = scale_of(v, top, start, n, BITS, STOCHASTIC, ROWS, BLOCK, WIDTH, LOG, MASKED)
    code = round_codes(v, widen(bits), seed, offset + start, BITS, STOCHASTIC, ROWS, BLOCK, WIDTH)
    store_codes(codes, code, start, n, BITS, ROWS, BLOCK, WIDTH, MASKED)
    store_rows(scales, bits, start, n, ROWS, BLOCK, MASKED)


@triton.jit
def delta_quantise_kernel(
    old, new, error, error_out, codes, scales, flag, n, beta, seed, offset, first_tile,
    HAS_NEW: tl.constexpr, BITS: tl.constexpr, STOCHASTIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, LOG: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    d = load_tile(old, start, n, ROWS, BLOCK, WIDTH, MASKED)
    if HAS_NEW:
        d = d - load_tile(new, start, n, ROWS, BLOCK, WIDTH, MASKED)
    d = d + beta * load_tile(error, start, n, ROWS, BLOCK, WIDTH, MASKED)
    top = absmax_or_flag(d, start, flag, ROWS, BLOCK, WIDTH)
    bits = scale_of(d, top, start, n, BITS, STOCHASTIC, ROWS, BLOCK, WIDTH, LOG, MASKED)
    scale = widen(bits)
    code = round_codes(d, scale, seed, offset + start, BITS, STOCHASTIC, ROWS, BLOCK, WIDTH)
    store_codes(codes, code, start, n, BITS, ROWS, BLOCK, WIDTH, MASKED)
    store_rows(scales, bits, start, n, ROWS, BLOCK, MASKED)
    value = levels_of(code, BITS) * scale[:, None]
    store_tile(error_out, d - value, start, n, ROWS, BLOCK, WIDTH, MASKED)


def quantise(
    x: Tensor, codes: Tensor, scales: Tensor, *, bits: int, block: int, stochastic: bool, seed: int, offset: int
) -> None:
    """Fill `codes` and `scales`; `seed` is signed. Raises NonFiniteError."""
    flag = new_flag(x.device)
    rows, width, parts = launches(x.numel(), block)
    for first, count, masked in parts:
        quantise_kernel[(count,)](
            x, codes, scales, flag, x.numel(), seed, offset, first,
            bits, stochastic, rows, block, width, width.bit_length() - 1, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    raise_flag(flag)


def delta_quantise(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    error_out: Tensor,
    codes: Tensor,
    scales: Tensor,
    *,
    beta: float,
    bits: int,
    block: int,
    stochastic: bool,
    seed: int,
    offset: int,
) -> None:
    """Fill `codes`, `scales` and `error_out` (may be `error`); `seed` is signed. Raises NonFiniteError."""
    flag = new_flag(old.device)
    rows, width, parts = launches(old.numel(), block)
    for first, count, masked in parts:
        delta_quantise_kernel[(count,)](
            old, old if new is None else new, error, error_out, codes, scales, flag, old.numel(), beta, seed, offset,
            first, new is not None, bits, stochastic, rows, block, width, width.bit_length() - 1, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    raise_flag(flag)
