"""GPU path: one program for a tile of blocks; no hardware conversion to fp8 or bf16 is used."""

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
    absmax_scale,
    inverse,
    launches,
    load_bytes,
    load_scales,
    load_tile,
    new_flag,
    raise_flag,
    round_even,
    store_bytes,
    store_rows,
    store_tile,
    widen,
)

_BF16_BLOCK = 256


@triton.jit
def encode_fp8_kernel(
    x, codes, scales, flag, n, first_tile,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    v = load_tile(x, start, n, ROWS, BLOCK, WIDTH, MASKED)
    top = absmax_or_flag(v, start, flag, ROWS, BLOCK, WIDTH)
    scale = absmax_scale(top, 448.0, 0x7B12)
    store_rows(scales, scale, start, n, ROWS, BLOCK, MASKED)
    y = v * inverse(widen(scale))[:, None]
    bits = y.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = tl.minimum(((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960, 0x7E)
    small = round_even(tl.abs(y) * 512.0)
    code = tl.where(magnitude >= 0x3C800000, normal, small) | ((bits >> 24) & 0x80)
    store_bytes(codes, code & 0xFF, start, n, 1, ROWS, BLOCK, WIDTH, MASKED)


@triton.jit
def decode_fp8_kernel(
    codes, scales, out, n, first_tile,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    c = load_bytes(codes, start, n, 1, ROWS, BLOCK, WIDTH, MASKED)
    low = c & 0x7F
    normal = ((low << 20) + 0x3C000000).to(tl.float32, bitcast=True)
    value = tl.where(low >= 8, normal, low.to(tl.float32) * 0.001953125)
    value = tl.where(low == 0x7F, float("nan"), value)
    scale = load_scales(scales, start, n, ROWS, BLOCK, MASKED)[:, None]
    sign = tl.where(c < 0x80, 1.0, -1.0)  # a unary minus is 0 - x in Triton 3.7: it loses the sign of zero
    store_tile(out, sign * value * scale, start, n, ROWS, BLOCK, WIDTH, MASKED)


@triton.jit
def encode_bf16_kernel(x, out, flag, n, first_tile, ROWS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    v = load_tile(x, start, n, ROWS, BLOCK, BLOCK, MASKED)
    absmax_or_flag(v, start, flag, ROWS, BLOCK, BLOCK)
    bits = v.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    code = tl.minimum((magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16, 0x7F7F) | ((bits >> 16) & 0x8000)
    store_tile(out, code.to(tl.int16), start, n, ROWS, BLOCK, BLOCK, MASKED)


@triton.jit
def decode_bf16_kernel(bits, out, n, first_tile, ROWS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    start = (first_tile + tl.program_id(0)).to(tl.int64) * (ROWS * BLOCK)
    place = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if MASKED:
        word = tl.load(bits + start + place, mask=start + place < n, other=0)
    else:
        word = tl.load(bits + start + place)
    store_tile(out, widen(word), start, n, ROWS, BLOCK, BLOCK, MASKED)


def encode_fp8(x: Tensor, codes: Tensor, scales: Tensor, *, block: int) -> None:
    """Fill `codes` and `scales`. Raises NonFiniteError."""
    flag = new_flag(x.device)
    rows, width, parts = launches(x.numel(), block)
    for first, count, masked in parts:
        encode_fp8_kernel[(count,)](
            x, codes, scales, flag, x.numel(), first, rows, block, width, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    raise_flag(flag)


def decode_fp8(codes: Tensor, scales: Tensor, out: Tensor, *, block: int) -> None:
    """Fill `out`."""
    rows, width, parts = launches(out.numel(), block)
    for first, count, masked in parts:
        decode_fp8_kernel[(count,)](
            codes, scales, out, out.numel(), first, rows, block, width, masked,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def encode_bf16(x: Tensor, out: Tensor) -> None:
    """Fill `out`. Raises NonFiniteError."""
    flag = new_flag(x.device)
    rows, _, parts = launches(x.numel(), _BF16_BLOCK)
    for first, count, masked in parts:
        encode_bf16_kernel[(count,)](x, out, flag, x.numel(), first, rows, _BF16_BLOCK, masked, num_warps=WARPS)
    raise_flag(flag)


def decode_bf16(bits: Tensor, out: Tensor) -> None:
    """Fill `out`."""
    rows, _, parts = launches(bits.numel(), _BF16_BLOCK)
    for first, count, masked in parts:
        decode_bf16_kernel[(count,)](bits, out, bits.numel(), first, rows, _BF16_BLOCK, masked, num_warps=WARPS)
