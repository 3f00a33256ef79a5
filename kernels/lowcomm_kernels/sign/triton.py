"""GPU path: one program for a tile of blocks."""

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
    load_bytes,
    load_scales,
    load_tile,
    mean_magnitude,
    new_flag,
    raise_flag,
    store_bytes,
    store_rows,
    store_tile,
    widen,
)


@triton.jit
def _scale_bits(
    v, top, start, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, LOG: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    mean = mean_magnitude(v, start, n, ROWS, BLOCK, WIDTH, LOG, MASKED).to(tl.int32, bitcast=True)
    bits = tl.minimum((mean + 0x7FFF + ((mean >> 16) & 1)) >> 16, 0x7F7F)
    return tl.where(top < 0x0D800000, 0, bits)


@triton.jit
def _store_signs(
    words, v, start, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr
):
    bit = (v >= 0.0).to(tl.int32)
    if MASKED:
        place = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, WIDTH)[None, :]
        bit = tl.where(start + place < n, bit, 0)
    byte = tl.sum(tl.reshape(bit, (ROWS, WIDTH // 8, 8)) << tl.arange(0, 8)[None, None, :], axis=2)
    store_bytes(words, byte, start, n, 8, ROWS, BLOCK, WIDTH, MASKED)


@triton.jit
def sign_pack_kernel(
    x, words, scales, flag, n, first_tile,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, LOG: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    v = load_tile(x, start, n, ROWS, BLOCK, WIDTH, MASKED)
    top = absmax_or_flag(v, start, flag, ROWS, BLOCK, WIDTH)
    _store_signs(words, v, start, n, ROWS, BLOCK, WIDTH, MASKED)
    store_rows(scales, _scale_bits(v, top, start, n, ROWS, BLOCK, WIDTH, LOG, MASKED), start, n, ROWS, BLOCK, MASKED)


@triton.jit
def delta_sign_kernel(
    old, new, error, error_out, words, scales, flag, n, beta, first_tile,
    HAS_NEW: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, LOG: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    d = load_tile(old, start, n, ROWS, BLOCK, WIDTH, MASKED)
    if HAS_NEW:
        d = d - load_tile(new, start, n, ROWS, BLOCK, WIDTH, MASKED)
    d = d + beta * load_tile(error, start, n, ROWS, BLOCK, WIDTH, MASKED)
    top = absmax_or_flag(d, start, flag, ROWS, BLOCK, WIDTH)
    _store_signs(words, d, start, n, ROWS, BLOCK, WIDTH, MASKED)
    bits = _scale_bits(d, top, start, n, ROWS, BLOCK, WIDTH, LOG, MASKED)
    store_rows(scales, bits, start, n, ROWS, BLOCK, MASKED)
    scale = widen(bits)[:, None]
    store_tile(error_out, d - tl.where(d >= 0.0, scale, -scale), start, n, ROWS, BLOCK, WIDTH, MASKED)


@triton.jit
def sign_unpack_kernel(
    words, scales, out, n, weight, first_tile,
    ACCUMULATE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    byte = load_bytes(words, start, n, 8, ROWS, BLOCK, WIDTH, MASKED)
    bit = tl.reshape((byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1, (ROWS, WIDTH))
    scale = load_scales(scales, start, n, ROWS, BLOCK, MASKED)[:, None]
    v = tl.where(bit != 0, scale, -scale)
    if ACCUMULATE:
        v = load_tile(out, start, n, ROWS, BLOCK, WIDTH, MASKED) + weight * v
    store_tile(out, v, start, n, ROWS, BLOCK, WIDTH, MASKED)


def sign_pack(x: Tensor, words: Tensor, scales: Tensor, *, block: int) -> None:
    """Fill `words` and `scales`. Raises NonFiniteError."""
    flag = new_flag(x.device)
    rows, width, parts = launches(x.numel(), block)
    for first, count, masked in parts:
        sign_pack_kernel[(count,)](
            x, words, scales, flag, x.numel(), first, rows, block, width, width.bit_length() - 1, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    raise_flag(flag)


def delta_sign(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    error_out: Tensor,
    words: Tensor,
    scales: Tensor,
    *,
    beta: float,
    block: int,
) -> None:
    """Fill the outputs; `error_out` may be `error`. Raises NonFiniteError."""
    flag = new_flag(old.device)
    rows, width, parts = launches(old.numel(), block)
    for first, count, masked in parts:
        delta_sign_kernel[(count,)](
            old, old if new is None else new, error, error_out, words, scales, flag, old.numel(), beta, first,
            new is not None, rows, block, width, width.bit_length() - 1, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    raise_flag(flag)


def _unpack(words: Tensor, scales: Tensor, out: Tensor, weight: float, block: int, accumulate: bool) -> None:
    rows, width, parts = launches(out.numel(), block)
    for first, count, masked in parts:
        sign_unpack_kernel[(count,)](
            words, scales, out, out.numel(), weight, first, accumulate, rows, block, width, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def sign_unpack(words: Tensor, scales: Tensor, out: Tensor, *, block: int) -> None:
    """Fill `out`."""
    _unpack(words, scales, out, 0.0, block, False)


def sign_accumulate(words: Tensor, scales: Tensor, acc: Tensor, *, weight: float, block: int) -> None:
    """Add to `acc`."""
    _unpack(words, scales, acc, weight, block, True)
