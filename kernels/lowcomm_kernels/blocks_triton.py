"""Block formats for Triton kernels: the formulas of `bits.py` on a tile of ROWS blocks, each WIDTH wide.

WIDTH is the next power of two of BLOCK. Full tiles and the rest are two launches: a mask that depends on n would cost
the full ones their 16-byte accesses. All of it needs `enable_fp_fusion=False`.
"""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: N803

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.bits import block_count, next_power_of_two
from lowcomm_kernels.errors import NonFiniteError

TILE = 2048
"""Elements per program: four 16-byte loads for each of 128 threads."""
WARPS = 4


class Launch(NamedTuple):
    """Programs `first ... first + programs - 1`; `masked` if some of their elements lie past the end."""

    first: int
    programs: int
    masked: bool


def launches(numel: int, block: int) -> tuple[int, int, list[Launch]]:
    """Rows of a tile, their width, and the one or two launches that cover `numel` elements."""
    width = next_power_of_two(block)
    rows = max(1, TILE // width)
    full = numel // (rows * block)
    total = -(-block_count(numel, block) // rows)
    parts = [Launch(0, full, False), Launch(full, total - full, True)]
    return rows, width, [part for part in parts if part.programs]


def new_flag(device: torch.device) -> Tensor:
    """int64 [1] for the smallest bad index, at its largest value."""
    return torch.full((1,), torch.iinfo(torch.int64).max, dtype=torch.int64, device=device)


def raise_flag(flag: Tensor) -> None:
    """Raise NonFiniteError if a kernel wrote an index (waits for the device)."""
    index = int(flag.item())
    if index != torch.iinfo(torch.int64).max:
        raise NonFiniteError(index)


@triton.jit
def load_tile(x, start, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = row * BLOCK + column
    if MASKED:
        return tl.load(x + start + place, mask=(column < BLOCK) & (start + place < n), other=0.0)
    if WIDTH != BLOCK:
        return tl.load(x + start + place, mask=(column < BLOCK) & (row >= 0), other=0.0)
    return tl.load(x + start + place)


@triton.jit
def store_tile(x, v, start, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = row * BLOCK + column
    if MASKED:
        tl.store(x + start + place, v, mask=(column < BLOCK) & (start + place < n))
    elif WIDTH != BLOCK:
        tl.store(x + start + place, v, mask=(column < BLOCK) & (row >= 0))
    else:
        tl.store(x + start + place, v)


@triton.jit
def absmax_or_flag(v, start, flag, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """int32 [ROWS] bits of the largest magnitudes; a NaN or infinity puts its index into `flag`."""
    bits = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    top = tl.max(bits, axis=1)
    if tl.max(top, axis=0) >= 0x7F800000:
        place = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, WIDTH)[None, :]
        first = tl.min(tl.min(tl.where(bits >= 0x7F800000, place, 0x7FFFFFFF), axis=1), axis=0)
        tl.atomic_min(flag, start + first)
    return top


@triton.jit
def bf16_up(v, CAP: tl.constexpr):
    return tl.minimum((v.to(tl.int32, bitcast=True) + 0xFFFF) >> 16, CAP)


@triton.jit
def widen(bits):
    return ((bits.to(tl.int32) & 0xFFFF) << 16).to(tl.float32, bitcast=True)


@triton.jit
def inverse(scale):
    one = tl.full(scale.shape, 1.0, tl.float32)
    return tl.where(scale == 0.0, 0.0, tl.div_rn(one, tl.where(scale == 0.0, 1.0, scale)))


@triton.jit
def absmax_scale(top, LEVEL: tl.constexpr, CAP: tl.constexpr):
    t = tl.div_rn(top.to(tl.float32, bitcast=True), tl.full(top.shape, LEVEL, tl.float32))
    return tl.where(top < 0x0D800000, 0, bf16_up(t, CAP))


@triton.jit
def _fold_once(v, ROWS: tl.constexpr, HALF: tl.constexpr):
    return tl.sum(tl.reshape(v, (ROWS, 2, HALF)), axis=1)


@triton.jit
def mean_magnitude(
    v, start, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, LOG: tl.constexpr, MASKED: tl.constexpr
):
    """fp32 [ROWS]; elements past the end are 0 in `v`."""
    total = tl.abs(v) * 0.000244140625
    for level in tl.static_range(LOG):
        total = _fold_once(total, ROWS, WIDTH >> (level + 1))
    total = tl.reshape(total, (ROWS,))
    count = tl.full((ROWS,), BLOCK, tl.float32)
    if MASKED:
        left = n - start - tl.arange(0, ROWS) * BLOCK
        count = tl.minimum(tl.maximum(left, 1), BLOCK).to(tl.float32)
    return tl.div_rn(total, count * 0.000244140625)


@triton.jit
def round_even(t):
    return (t + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def store_rows(x, v, start, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """int16 [ROWS], one for each block from element `start`."""
    row = tl.arange(0, ROWS)
    if MASKED:
        tl.store(x + start // BLOCK + row, v.to(tl.int16), mask=start + row * BLOCK < n)
    else:
        tl.store(x + start // BLOCK + row, v.to(tl.int16))


@triton.jit
def load_scales(x, start, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """fp32 [ROWS]; 0 for blocks past the end."""
    row = tl.arange(0, ROWS)
    if MASKED:
        return widen(tl.load(x + start // BLOCK + row, mask=start + row * BLOCK < n, other=0))
    return widen(tl.load(x + start // BLOCK + row))


@triton.jit
def store_bytes(
    x, v, start, n, PER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """[ROWS, WIDTH // PER] bytes, each the codes of PER elements."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH // PER)[None, :]
    place = start // PER + row * (BLOCK // PER) + column
    byte = v.to(tl.uint8)
    if MASKED:
        tl.store(x + place, byte, mask=(column < BLOCK // PER) & (place * PER < n))
    elif WIDTH != BLOCK:
        tl.store(x + place, byte, mask=(column < BLOCK // PER) & (row >= 0))
    else:
        tl.store(x + place, byte)


@triton.jit
def load_bytes(
    x, start, n, PER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr
):
    """int32 [ROWS, WIDTH // PER] in [0, 255]; 0 past the end."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH // PER)[None, :]
    place = start // PER + row * (BLOCK // PER) + column
    if MASKED:
        return tl.load(x + place, mask=(column < BLOCK // PER) & (place * PER < n), other=0).to(tl.int32)
    if WIDTH != BLOCK:
        return tl.load(x + place, mask=(column < BLOCK // PER) & (row >= 0), other=0).to(tl.int32)
    return tl.load(x + place).to(tl.int32)
