"""CPU path: Batcher's odd-even merge sort, a network of comparators, each a minimum and a maximum of whole rows.

Batcher, Sorting networks and their applications, AFIPS 1968: 19 comparators for 8 rows.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.blocks_numba import PARALLEL, RUN
from lowcomm_kernels.dispatch import task_count

TILE = 1024
"""Columns at a time: 8 rows of them stay in L1."""


@cache
def comparators(count: int) -> np.ndarray:
    """int64 [m, 2]: which rows meet, the smaller value to the first."""
    found: list[tuple[int, int]] = []
    size = 1
    while size < count:
        step = size
        while step >= 1:
            for first in range(step % size, count - step, 2 * step):
                for i in range(first, min(first + step, count - step)):
                    if i // (2 * size) == (i + step) // (2 * size):
                        found.append((i, i + step))
            step //= 2
        size *= 2
    return np.array(found, dtype=np.int64).reshape(-1, 2)


@njit(**RUN)
def _turn(x):
    for e in range(x.size):
        x[e] = x[e] ^ ((x[e] >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(**RUN)
def _run(rows, pairs, first, last):
    count, size = rows.shape
    for t in range(first, last):
        low = t * TILE
        high = min(low + TILE, size)
        for k in range(count):
            _turn(rows[k, low:high])
        for p in range(pairs.shape[0]):
            x = rows[pairs[p, 0], low:high]
            y = rows[pairs[p, 1], low:high]
            for e in range(x.size):
                a = x[e]
                b = y[e]
                x[e] = min(a, b)
                y[e] = max(a, b)
        for k in range(count):
            _turn(rows[k, low:high])


@njit(**PARALLEL)
def _run_all(rows, pairs, tiles, tasks):
    for t in prange(tasks):
        _run(rows, pairs, t * tiles // tasks, (t + 1) * tiles // tasks)


def sort_rows(rows: Tensor) -> None:
    """Sort along dimension 0, in place. One thread starts no pool, so that the process may fork later."""
    bits, pairs = rows.view(torch.int32).numpy(), comparators(len(rows))
    tiles = -(-rows.shape[1] // TILE)
    if torch.get_num_threads() == 1:
        _run(bits, pairs, 0, tiles)
    else:
        _run_all(bits, pairs, tiles, task_count(tiles))
