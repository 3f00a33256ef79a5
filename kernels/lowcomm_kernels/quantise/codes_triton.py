"""Rounding and packing of a tile for the Triton kernels; the specification is in `__init__.py`."""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from lowcomm_kernels.blocks_triton import (
    absmax_scale,
    bf16_up,
    inverse,
    load_bytes,
    mean_magnitude,
    round_even,
    store_bytes,
)
from lowcomm_kernels.philox_triton import random16_of


@triton.jit
def scale_of(
    v, top, start, n,
    BITS: tl.constexpr, STOCHASTIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    LOG: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """int32 [ROWS] scale bits."""
    if BITS == 8:
        return absmax_scale(top, 127.0, 0x7C01)
    if BITS == 4:
        return absmax_scale(top, 7.0, 0x7E12)
    if STOCHASTIC:
        return absmax_scale(top, 3.0, 0x7EAA)
    mean = mean_magnitude(v, start, n, ROWS, BLOCK, WIDTH, LOG, MASKED)
    return tl.where(top < 0x0D800000, 0, bf16_up(mean * 0.625, 0x7EAA))


@triton.jit
def round_codes(
    v, scale, seed, first,
    BITS: tl.constexpr, STOCHASTIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """int32 [ROWS, WIDTH] codes; `first` is the global index of the tile's first element."""
    t = v * inverse(scale)[:, None]
    if BITS == 2:
        t = t * 0.5 + 1.5
    if STOCHASTIC:
        counter = tl.arange(0, ROWS)[:, None] * (BLOCK // 8) + tl.arange(0, WIDTH // 8)[None, :]
        random = tl.reshape(random16_of(first // 8 + counter, seed), (ROWS, WIDTH))
        t = t + (2 * random - 65535).to(tl.float32) * 0.00000762939453125
    code = round_even(t)
    if BITS == 2:
        return tl.minimum(tl.maximum(code, 0), 3)
    if BITS == 4:
        return tl.minimum(tl.maximum(code, -7), 7)
    return tl.minimum(tl.maximum(code, -127), 127)


@triton.jit
def levels_of(code, BITS: tl.constexpr):
    if BITS == 2:
        return (2 * code - 3).to(tl.float32)
    return code.to(tl.float32)


@triton.jit
def store_codes(
    codes, code, start, n,
    BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    if MASKED and BITS < 8:
        # Unused bits of the last byte are 0 by specification; the 2-bit code of a padded zero is not.
        place = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, WIDTH)[None, :]
        code = tl.where(start + place < n, code, 0)
    if BITS == 8:
        store_bytes(codes, code & 0xFF, start, n, 1, ROWS, BLOCK, WIDTH, MASKED)
    elif BITS == 4:
        low, high = tl.split(tl.reshape(code & 0xF, (ROWS, WIDTH // 2, 2)))
        store_bytes(codes, low | (high << 4), start, n, 2, ROWS, BLOCK, WIDTH, MASKED)
    else:
        even, odd = tl.split(tl.reshape(code, (ROWS, WIDTH // 4, 2, 2)))
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        byte = c0 | (c1 << 2) | (c2 << 4) | (c3 << 6)
        store_bytes(codes, byte, start, n, 4, ROWS, BLOCK, WIDTH, MASKED)


@triton.jit
def load_levels(
    codes, start, n,
    BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """fp32 [ROWS, WIDTH]: the levels that the packed codes stand for."""
    byte = load_bytes(codes, start, n, 8 // BITS, ROWS, BLOCK, WIDTH, MASKED)
    if BITS == 8:
        level = (byte ^ 128) - 128
    elif BITS == 4:
        level = (tl.reshape(tl.join(byte & 15, byte >> 4), (ROWS, WIDTH)) ^ 8) - 8
    else:
        even = tl.join(byte & 3, (byte >> 4) & 3)
        odd = tl.join((byte >> 2) & 3, byte >> 6)
        level = 2 * tl.reshape(tl.join(even, odd), (ROWS, WIDTH)) - 3
    return level.to(tl.float32)
