"""GPU path: one program for a tile of blocks, looping over the peers; the sum stays in registers."""

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
    load_scales,
    new_flag,
    raise_flag,
    store_rows,
    store_tile,
    widen,
)
from lowcomm_kernels.quantise.codes_triton import levels_of, load_levels, round_codes, scale_of, store_codes


@triton.jit
def _sum_tile(
    codes, codes_step, scales, scales_step, weights, peers, start, n,
    BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for w in range(peers):
        row = tl.cast(w, tl.int64)
        scale = load_scales(scales + row * scales_step, start, n, ROWS, BLOCK, MASKED)
        level = load_levels(codes + row * codes_step, start, n, BITS, ROWS, BLOCK, WIDTH, MASKED)
        acc = acc + tl.load(weights + w) * (level * scale[:, None])
    return acc


@triton.jit
def reduce_to_float_kernel(
    codes, codes_step, scales, scales_step, weights, peers, out, n, first_tile,
    BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    acc = _sum_tile(codes, codes_step, scales, scales_step, weights, peers, start, n, BITS, ROWS, BLOCK, WIDTH, MASKED)
    store_tile(out, acc, start, n, ROWS, BLOCK, WIDTH, MASKED)


@triton.jit
def reduce_kernel(
    codes, codes_step, scales, scales_step, weights, peers, out, out_scales, error, flag, n, seed, offset, first_tile,
    HAS_ERROR: tl.constexpr, BITS: tl.constexpr, OUT_BITS: tl.constexpr, STOCHASTIC: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, LOG: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    acc = _sum_tile(codes, codes_step, scales, scales_step, weights, peers, start, n, BITS, ROWS, BLOCK, WIDTH, MASKED)
    if MASKED:
        # The 2-bit code 0 past the end decodes to -3 times a scale of 0: keep a plain 0 there.
        place = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, WIDTH)[None, :]
        acc = tl.where(start + place < n, acc, 0.0)
    if WIDTH != BLOCK:
        acc = tl.where(tl.arange(0, WIDTH)[None, :] < BLOCK, acc, 0.0)
    top = absmax_or_flag(acc, start, flag, ROWS, BLOCK, WIDTH)
    bits = scale_of(acc, top, start, n, OUT_BITS, STOCHASTIC, ROWS, BLOCK, WIDTH, LOG, MASKED)
    scale = widen(bits)
    code = round_codes(acc, scale, seed, offset + start, OUT_BITS, STOCHASTIC, ROWS, BLOCK, WIDTH)
    store_codes(out, code, start, n, OUT_BITS, ROWS, BLOCK, WIDTH, MASKED)
    store_rows(out_scales, bits, start, n, ROWS, BLOCK, MASKED)
    if HAS_ERROR:
        value = levels_of(code, OUT_BITS) * scale[:, None]
        store_tile(error, acc - value, start, n, ROWS, BLOCK, WIDTH, MASKED)


def reduce_to_float(codes: Tensor, scales: Tensor, weights: Tensor, out: Tensor, *, bits: int, block: int) -> None:
    """Fill `out`."""
    rows, width, parts = launches(out.numel(), block)
    for first, count, masked in parts:
        reduce_to_float_kernel[(count,)](
            codes, codes.stride(0), scales, scales.stride(0), weights, weights.numel(), out, out.numel(), first,
            bits, rows, block, width, masked, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def reduce_quantised(
    codes: Tensor,
    scales: Tensor,
    weights: Tensor,
    out_codes: Tensor,
    out_scales: Tensor,
    error_out: Tensor | None,
    *,
    numel: int,
    bits: int,
    out_bits: int,
    block: int,
    stochastic: bool,
    seed: int,
    offset: int,
) -> None:
    """Fill the outputs; `seed` is signed. Raises NonFiniteError."""
    flag = new_flag(codes.device)
    rows, width, parts = launches(numel, block)
    for first, count, masked in parts:
        reduce_kernel[(count,)](
            codes, codes.stride(0), scales, scales.stride(0), weights, weights.numel(), out_codes, out_scales,
            weights if error_out is None else error_out, flag, numel, seed, offset, first,
            error_out is not None, bits, out_bits, stochastic, rows, block, width, width.bit_length() - 1, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    raise_flag(flag)
