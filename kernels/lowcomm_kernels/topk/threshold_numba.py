"""numba form of `threshold`: count each chunk, then fill at the running sums. Reads x twice, writes what is kept."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.errors import NonFiniteError

_ABS = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _count(raw, least, chunk, counts, bad):
    for c in prange(counts.size):
        part = raw[c * chunk : (c + 1) * chunk]
        found = np.int32(0)
        top = np.int32(0)
        for i in range(part.size):
            key = part[i] & _ABS
            found = np.int32(found + np.int32(key >= least))
            top = key if key > top else top
        counts[c] = found
        bad[c] = top >= _INFINITY


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _fill(x, raw, least, chunk, starts, indices, values):
    for c in prange(starts.size - 1):
        part = raw[c * chunk : (c + 1) * chunk]
        at = starts[c]
        for i in range(part.size):
            if part[i] & _ABS >= least:
                indices[at] = i
                values[at] = x[c * chunk + i]
                at += 1


def threshold(x: Tensor, least_bits: int, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """counts, indices, values; `least_bits` are the bits of the smallest magnitude kept."""
    flat, chunks = x.numpy(), -(-x.numel() // chunk)
    raw, least = flat.view(np.int32), np.int32(least_bits)
    counts, bad = np.empty(chunks, np.int32), np.empty(chunks, np.bool_)
    _count(raw, least, chunk, counts, bad)
    if bad.any():
        first = int(bad.argmax()) * chunk
        part = raw[first : first + chunk] & _ABS
        raise NonFiniteError(first + int((part >= _INFINITY).argmax()))
    starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    indices, values = np.empty(starts[-1], np.uint16), np.empty(starts[-1], np.float32)
    _fill(flat, raw, least, chunk, starts, indices, values)
    return torch.from_numpy(counts), torch.from_numpy(indices), torch.from_numpy(values)
