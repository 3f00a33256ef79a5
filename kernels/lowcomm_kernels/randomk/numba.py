"""numba form of the index sets that are not sent; the specification is in `__init__.py`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.philox_numba import philox4x32
from lowcomm_kernels.topk.layout import Chunks


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _random(seed, count, chunk, k, full, tail, tail_k, indices):
    for c in prange(count):
        n = chunk if c < full else tail
        keep = k if c < full else tail_k
        out = indices[c * k : c * k + keep]
        places = np.empty(keep, np.int64)
        offset = np.int64(0)
        below = 0
        for i in range(keep):
            words = philox4x32(np.int64(c * k + i), seed)
            if i == 0:
                offset = (np.int64(words[1]) * n) >> 32
            start = i * n // keep
            size = (i + 1) * n // keep - start
            places[i] = start + ((np.int64(words[0]) * size) >> 32) + offset
            below += np.int64(places[i] < n)
        # Those that the rotation carries past the end are the last ones, and come first afterwards.
        for i in range(keep):
            out[(i + keep - below) if i < below else (i - below)] = places[i] if i < below else places[i] - n


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _window(turn, count, chunk, k, full, tail, tail_k, indices):
    for c in prange(count):
        n = chunk if c < full else tail
        keep = k if c < full else tail_k
        start = turn * keep % n
        around = max(start + keep - n, 0)
        for i in range(keep):
            indices[c * k + i] = i if i < around else start + i - around


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _gather(x, indices, count, chunk, k, full, tail_k, values, bad):
    for c in prange(count):
        part = x[c * chunk : (c + 1) * chunk]
        keep = k if c < full else tail_k
        for i in range(c * k, c * k + keep):
            if indices[i] < part.size:
                values[i] = part[indices[i]]
            else:
                bad[c] = True


def random_indices(chunks: Chunks, seed: int, indices: Tensor) -> None:
    """Fill `indices`; `seed` is the signed form."""
    shape = (chunks.count, chunks.chunk, chunks.k, chunks.full, chunks.tail, chunks.tail_k)
    _random(np.int64(seed), *shape, indices.numpy())


def window_indices(chunks: Chunks, turn: int, indices: Tensor) -> None:
    shape = (chunks.count, chunks.chunk, chunks.k, chunks.full, chunks.tail, chunks.tail_k)
    _window(np.int64(turn), *shape, indices.numpy())


def gather(x: Tensor, indices: Tensor, chunks: Chunks, values: Tensor) -> bool:
    """Fill `values`; False if an index lies outside its chunk."""
    bad = np.zeros(chunks.count, np.bool_)
    shape = (chunks.count, chunks.chunk, chunks.k, chunks.full, chunks.tail_k)
    _gather(x.numpy(), indices.numpy(), *shape, values.numpy(), bad)
    return not bad.any()
