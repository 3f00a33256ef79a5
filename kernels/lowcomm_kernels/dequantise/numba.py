"""CPU path: 4- and 2-bit codes are spread to bytes in L1, then one loop makes the values."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.bits import next_power_of_two
from lowcomm_kernels.blocks_numba import INNER, PARALLEL, RUN, unpack, widen
from lowcomm_kernels.dispatch import task_count


@njit(**INNER)
def add_levels(levels, scale, weight, acc):
    """acc (float32 [n]) += weight * (level * scale)."""
    for i in range(acc.size):
        acc[i] = acc[i] + weight * (np.float32(levels[i]) * scale)


@njit(**INNER)
def _put_levels(levels, scale, out):
    for i in range(out.size):
        out[i] = np.float32(levels[i]) * scale


@njit(**RUN)
def _run(packed, scales, bits, block, accumulate, weight, first, last, out, codes):
    for b in range(first, last):
        start = b * block
        stop = min(start + block, out.size)
        part = packed[start * bits // 8 : (stop * bits + 7) // 8]
        scale = widen(scales[b])
        levels = part.view(np.int8) if bits == 8 else codes
        if bits != 8:
            unpack(part, bits, codes)
        if accumulate:
            add_levels(levels, scale, weight, out[start:stop])
        else:
            _put_levels(levels, scale, out[start:stop])


@njit(**PARALLEL)
def _dequantise(packed, scales, bits, block, width, accumulate, weight, tasks, out):
    for t in prange(tasks):
        codes = np.empty(width, np.int8)
        first = t * scales.size // tasks
        last = (t + 1) * scales.size // tasks
        _run(packed, scales, bits, block, accumulate, weight, first, last, out, codes)


def dequantise(codes: Tensor, scales: Tensor, out: Tensor, *, bits: int, block: int) -> None:
    """Fill `out`."""
    _dequantise(
        codes.numpy(), scales.numpy(), bits, block, next_power_of_two(block), False, np.float32(0),
        task_count(scales.numel()), out.numpy(),
    )  # fmt: skip


def dequantise_accumulate(codes: Tensor, scales: Tensor, acc: Tensor, *, weight: float, bits: int, block: int) -> None:
    """Add to `acc`."""
    _dequantise(
        codes.numpy(), scales.numpy(), bits, block, next_power_of_two(block), True, np.float32(weight),
        task_count(scales.numel()), acc.numpy(),
    )  # fmt: skip
