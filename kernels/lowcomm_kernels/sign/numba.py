"""CPU path: one pass; the bits of 8 elements go through a 64-bit word of flags."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.bits import next_power_of_two
from lowcomm_kernels.blocks_numba import (
    INNER,
    PARALLEL,
    RUN,
    absmax_bits,
    bf16_nearest,
    first_bad,
    mean_magnitude,
    widen,
)
from lowcomm_kernels.dispatch import raise_bad, task_count
from lowcomm_kernels.quantise.numba import delta

_INF_BITS = np.int32(0x7F800000)
_TINY_BITS = np.int32(27 << 23)
# Flag i (byte i, 0 or 1) times bit 7 (8 - i) of this lands on bit 56 + i; no two products share a bit.
_GATHER = np.uint64(0x0102040810204080)
_COPIES = np.uint64(0x0101010101010101)
_OWN_BIT = np.uint64(0x8040201008040201)


@njit(**INNER)
def _pack_block(x, words, flags, fold):
    """Scale bits (int32) of a block, -1 if it is not finite; fills `words`. `flags`: uint8 [p]."""
    top = absmax_bits(x)
    if top >= _INF_BITS:
        return np.int32(-1)
    for i in range(x.size):
        flags[i] = np.uint8(1) if x[i] >= np.float32(0.0) else np.uint8(0)
    for i in range(x.size, 8 * words.size):
        flags[i] = np.uint8(0)
    groups = flags.view(np.uint64)
    for j in range(words.size):
        words[j] = np.uint8((groups[j] * _GATHER) >> np.uint64(56))
    if top < _TINY_BITS:
        return np.int32(0)
    return bf16_nearest(mean_magnitude(x, fold))


@njit(**INNER)
def spread_bits(words, flags):
    """Byte i of `flags` (uint8, room for 8 per word) becomes non-zero where bit i is set."""
    groups = flags.view(np.uint64)
    for j in range(words.size):
        groups[j] = (np.uint64(words[j]) * _COPIES) & _OWN_BIT


@njit(**RUN)
def _pack_run(x, block, first, last, words, scales, flags, fold):
    for b in range(first, last):
        start = b * block
        stop = min(start + block, x.size)
        scale = _pack_block(x[start:stop], words[start // 8 : (stop + 7) // 8], flags, fold)
        if scale < 0:
            return start + first_bad(x[start:stop])
        scales[b] = np.int16(scale)
    return -1


@njit(**PARALLEL)
def _sign_pack(x, block, width, words, scales, bad):
    for t in prange(bad.size):
        flags = np.empty(width, np.uint8)
        fold = np.empty(width, np.float32)
        first = t * scales.size // bad.size
        last = (t + 1) * scales.size // bad.size
        bad[t] = _pack_run(x, block, first, last, words, scales, flags, fold)


@njit(**RUN)
def _delta_run(old, new, error, beta, block, first, last, words, scales, error_out, scratch, flags, fold):
    for b in range(first, last):
        start = b * block
        stop = min(start + block, old.size)
        d = scratch[: stop - start]
        delta(old[start:stop], new[start:stop], error[start:stop], beta, d)
        bits = _pack_block(d, words[start // 8 : (stop + 7) // 8], flags, fold)
        if bits < 0:
            return start + first_bad(d)
        scales[b] = np.int16(bits)
        scale = widen(bits)
        part = error_out[start:stop]
        for i in range(d.size):
            part[i] = d[i] - (scale if d[i] >= np.float32(0.0) else -scale)
    return -1


@njit(**PARALLEL)
def _delta_sign(old, new, error, beta, block, width, words, scales, error_out, bad):
    for t in prange(bad.size):
        scratch = np.empty(block, np.float32)
        flags = np.empty(width, np.uint8)
        fold = np.empty(width, np.float32)
        first = t * scales.size // bad.size
        last = (t + 1) * scales.size // bad.size
        bad[t] = _delta_run(old, new, error, beta, block, first, last, words, scales, error_out, scratch, flags, fold)


@njit(**RUN)
def _unpack_run(words, scales, block, accumulate, weight, first, last, out, flags):
    for b in range(first, last):
        start = b * block
        part = out[start : min(start + block, out.size)]
        spread_bits(words[start // 8 : (start + part.size + 7) // 8], flags)
        scale = widen(scales[b])
        if accumulate:
            # The product of the weight and +-scale has one magnitude, so it is rounded once for the block.
            step = weight * scale
            for i in range(part.size):
                part[i] = part[i] + (step if flags[i] != 0 else -step)
        else:
            for i in range(part.size):
                part[i] = scale if flags[i] != 0 else -scale


@njit(**PARALLEL)
def _unpack(words, scales, block, width, accumulate, weight, tasks, out):
    for t in prange(tasks):
        flags = np.empty(width, np.uint8)
        first = t * scales.size // tasks
        last = (t + 1) * scales.size // tasks
        _unpack_run(words, scales, block, accumulate, weight, first, last, out, flags)


def sign_pack(x: Tensor, words: Tensor, scales: Tensor, *, block: int) -> None:
    """Fill `words` and `scales`. Raises NonFiniteError."""
    bad = np.empty(task_count(scales.numel()), np.int64)
    _sign_pack(x.numpy(), block, next_power_of_two(block), words.numpy(), scales.numpy(), bad)
    raise_bad(bad)


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
    bad = np.empty(task_count(scales.numel()), np.int64)
    new_view = np.empty(0, np.float32) if new is None else new.numpy()
    _delta_sign(
        old.numpy(), new_view, error.numpy(), np.float32(beta), block, next_power_of_two(block),
        words.numpy(), scales.numpy(), error_out.numpy(), bad,
    )  # fmt: skip
    raise_bad(bad)


def sign_unpack(words: Tensor, scales: Tensor, out: Tensor, *, block: int) -> None:
    """Fill `out`."""
    tasks = task_count(scales.numel())
    width = next_power_of_two(block)
    _unpack(words.numpy(), scales.numpy(), block, width, False, np.float32(0), tasks, out.numpy())


def sign_accumulate(words: Tensor, scales: Tensor, acc: Tensor, *, weight: float, block: int) -> None:
    """Add to `acc`."""
    tasks = task_count(scales.numel())
    width = next_power_of_two(block)
    _unpack(words.numpy(), scales.numpy(), block, width, True, np.float32(weight), tasks, acc.numpy())
