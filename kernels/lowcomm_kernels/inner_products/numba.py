"""CPU path: a tile of lanes stays in L1 while all elements that belong to it are added, for one pair after another."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.blocks_numba import PARALLEL, RUN
from lowcomm_kernels.dispatch import task_count

TILE = 256


@njit(**RUN)
def _tile(rows, lanes, low, high):
    count, size = rows.shape
    width = lanes.shape[2]
    for i in range(count):
        for j in range(i, count):
            total = lanes[i, j]
            for start in range(0, size, width):
                first = start + low
                stop = min(start + high, size)
                x = rows[i, first:stop]
                y = rows[j, first:stop]
                part = total[low : low + x.size]
                for e in range(x.size):
                    part[e] += np.float64(x[e]) * np.float64(y[e])


@njit(**RUN)
def _run(rows, lanes, first, last):
    for k in range(first, last):
        _tile(rows, lanes, k * TILE, (k + 1) * TILE)


@njit(**PARALLEL)
def _run_all(rows, lanes, tasks):
    tiles = lanes.shape[2] // TILE
    for t in prange(tasks):
        _run(rows, lanes, t * tiles // tasks, (t + 1) * tiles // tasks)


def add_products(rows: Tensor, lanes: Tensor) -> None:
    """Add to the upper triangle of `lanes`. One thread starts no pool, so that the process may fork later."""
    tiles = lanes.shape[2] // TILE
    if torch.get_num_threads() == 1:
        _run(rows.numpy(), lanes.numpy(), 0, tiles)
    else:
        _run_all(rows.numpy(), lanes.numpy(), task_count(tiles))
