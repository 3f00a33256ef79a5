"""CPU path: branch-free integer encoding, one pass."""

# The intrinsics are typed with their context, which numba passes.
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.blocks_numba import (
    INNER,
    PARALLEL,
    RUN,
    absmax_bits,
    absmax_scale,
    as_float,
    as_int,
    bf16_nearest,
    first_bad,
    inverse,
    widen,
)
from lowcomm_kernels.dispatch import raise_bad, task_count

_INF_BITS = np.int32(0x7F800000)
_MAGIC = np.float32(12582912.0)
BF16_BLOCK = 1024
"""Elements that the bf16 loops check and convert at a time; the format has no blocks."""


@njit(**INNER)
def _encode_block(x, inv, codes):
    for i in range(x.size):
        y = x[i] * inv
        bits = as_int(y)
        magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
        rounded = np.int32(magnitude + np.int32(0x7FFFF) + ((magnitude >> np.int32(20)) & np.int32(1)))
        normal = np.int32(min(np.int32((rounded >> np.int32(20)) - np.int32(960)), np.int32(0x7E)))
        small = np.int32(as_int(as_float(magnitude) * np.float32(512.0) + _MAGIC) - np.int32(0x4B400000))
        code = normal if magnitude >= np.int32(121 << 23) else small
        codes[i] = np.uint8(code | ((bits >> np.int32(24)) & np.int32(0x80)))


@njit(**INNER)
def _decode_block(codes, scale, out):
    for i in range(out.size):
        c = np.int32(codes[i])
        low = np.int32(c & np.int32(0x7F))
        normal = as_float(np.int32((low << np.int32(20)) + np.int32(120 << 23)))
        value = normal if low >= np.int32(8) else np.float32(low) * np.float32(2.0**-9)
        value = value if low != np.int32(0x7F) else np.float32(np.nan)
        out[i] = (value if c < np.int32(0x80) else -value) * scale


@njit(**RUN)
def _encode_run(x, block, first, last, codes, scales):
    for b in range(first, last):
        part = x[b * block : min((b + 1) * block, x.size)]
        top = absmax_bits(part)
        if top >= _INF_BITS:
            return b * block + first_bad(part)
        bits = absmax_scale(top, 448, np.int32(0x7B12))
        scales[b] = np.int16(bits)
        _encode_block(part, inverse(widen(bits)), codes[b * block : b * block + part.size])
    return -1


@njit(**RUN)
def _decode_run(codes, scales, block, first, last, out):
    for b in range(first, last):
        part = out[b * block : min((b + 1) * block, out.size)]
        _decode_block(codes[b * block : b * block + part.size], widen(scales[b]), part)


@njit(**RUN)
def _bf16_run(x, first, last, out):
    for b in range(first, last):
        part = x[b * BF16_BLOCK : min((b + 1) * BF16_BLOCK, x.size)]
        if absmax_bits(part) >= _INF_BITS:
            return b * BF16_BLOCK + first_bad(part)
        target = out[b * BF16_BLOCK : b * BF16_BLOCK + part.size]
        for i in range(part.size):
            target[i] = np.int16(bf16_nearest(part[i]))
    return -1


@njit(**PARALLEL)
def _encode(x, block, codes, scales, bad):
    for t in prange(bad.size):
        first = t * scales.size // bad.size
        bad[t] = _encode_run(x, block, first, (t + 1) * scales.size // bad.size, codes, scales)


@njit(**PARALLEL)
def _decode(codes, scales, block, tasks, out):
    for t in prange(tasks):
        _decode_run(codes, scales, block, t * scales.size // tasks, (t + 1) * scales.size // tasks, out)


@njit(**PARALLEL)
def _encode_bf16(x, blocks, out, bad):
    for t in prange(bad.size):
        bad[t] = _bf16_run(x, t * blocks // bad.size, (t + 1) * blocks // bad.size, out)


@njit(**PARALLEL)
def _decode_bf16(bits, out):
    for i in prange(out.size):
        out[i] = widen(bits[i])


def encode_fp8(x: Tensor, codes: Tensor, scales: Tensor, *, block: int) -> None:
    """Fill `codes` and `scales`. Raises NonFiniteError."""
    bad = np.empty(task_count(scales.numel()), np.int64)
    _encode(x.numpy(), block, codes.numpy(), scales.numpy(), bad)
    raise_bad(bad)


def decode_fp8(codes: Tensor, scales: Tensor, out: Tensor, *, block: int) -> None:
    """Fill `out`."""
    _decode(codes.numpy(), scales.numpy(), block, task_count(scales.numel()), out.numpy())


def encode_bf16(x: Tensor, out: Tensor) -> None:
    """Fill `out`. Raises NonFiniteError."""
    blocks = -(-x.numel() // BF16_BLOCK)
    bad = np.empty(task_count(blocks), np.int64)
    _encode_bf16(x.numpy(), blocks, out.numpy(), bad)
    raise_bad(bad)


def decode_bf16(bits: Tensor, out: Tensor) -> None:
    """Fill `out`."""
    task_count(1)  # sets the threads
    _decode_bf16(bits.numpy(), out.numpy())
