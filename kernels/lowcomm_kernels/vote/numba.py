"""CPU path: counts are kept one bit plane each (a carry-save adder), so one operation counts 8 elements of a byte.

A tile of bytes stays in L1 while the peers are added; then the planes are compared with W // 2, from the top.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.blocks_numba import INNER, PARALLEL, RUN
from lowcomm_kernels.dispatch import flat_rows, task_count
from lowcomm_kernels.sign.numba import spread_bits

TILE_BYTES = 1024


@njit(**INNER)
def _add_plane(plane, carry):
    for i in range(carry.size):
        before = plane[i]
        plane[i] = np.uint8(before ^ carry[i])
        carry[i] = np.uint8(before & carry[i])


@njit(**INNER)
def _compare_plane(plane, want, above, equal):
    if want:
        for i in range(above.size):
            equal[i] = np.uint8(equal[i] & plane[i])
    else:
        for i in range(above.size):
            above[i] = np.uint8(above[i] | (equal[i] & plane[i]))
            equal[i] = np.uint8(equal[i] & ~plane[i])


@njit(**RUN)
def _tile(words, step, peers, tie_peer, low, high, planes, carry, above, equal):
    """Majority of bytes `low ... high - 1` into `above`; `planes`: uint8 [8 * TILE_BYTES]."""
    size = high - low
    depth = 0
    while (peers >> depth) > 0:
        depth += 1
    planes[:] = np.uint8(0)
    for w in range(peers):
        row = words[w * step + low : w * step + high]
        for i in range(size):
            carry[i] = row[i]
        for p in range(depth):
            if (w + 1) >> p == 0:
                break
            _add_plane(planes[p * TILE_BYTES : p * TILE_BYTES + size], carry[:size])
    above[:] = np.uint8(0)
    equal[:] = np.uint8(255)
    half = peers // 2
    for k in range(depth):
        p = depth - 1 - k
        _compare_plane(planes[p * TILE_BYTES : p * TILE_BYTES + size], (half >> p) & 1 == 1, above[:size], equal[:size])
    if peers % 2 == 0:
        row = words[tie_peer * step + low : tie_peer * step + high]
        for i in range(size):
            above[i] = np.uint8(above[i] | (equal[i] & row[i]))


@njit(**RUN)
def _run(words, step, peers, tie_peer, first, last, size, out, target, move, planes, carry, above, equal, flags):
    for t in range(first, last):
        low = t * TILE_BYTES
        high = min(low + TILE_BYTES, size)
        _tile(words, step, peers, tie_peer, low, high, planes, carry, above, equal)
        if target.size == 0:
            part = out[low:high]
            for i in range(part.size):
                part[i] = above[i]
        else:
            spread_bits(above[: high - low], flags)
            moved = target[8 * low : min(8 * high, target.size)]
            for i in range(moved.size):
                moved[i] = moved[i] + (move if flags[i] != 0 else -move)


@njit(**PARALLEL)
def _vote(words, step, peers, tie_peer, size, tiles, tasks, out, target, move):
    for t in prange(tasks):
        planes = np.empty(8 * TILE_BYTES, np.uint8)
        carry = np.empty(TILE_BYTES, np.uint8)
        above = np.empty(TILE_BYTES, np.uint8)
        equal = np.empty(TILE_BYTES, np.uint8)
        flags = np.empty(8 * TILE_BYTES, np.uint8)
        first = t * tiles // tasks
        last = (t + 1) * tiles // tasks
        _run(
            words, step, peers, tie_peer, first, last, size, out, target, move, planes, carry, above, equal, flags
        )  # fmt: skip


def _launch(words: Tensor, tie_peer: int, out: np.ndarray, target: np.ndarray, move: float) -> None:
    flat, step = flat_rows(words)
    peers, size = words.shape
    tiles = -(-size // TILE_BYTES)
    _vote(flat.numpy(), step, peers, tie_peer, size, tiles, task_count(tiles), out, target, np.float32(move))


def vote(words: Tensor, out: Tensor, *, tie_peer: int) -> None:
    """Fill `out`."""
    _launch(words, tie_peer, out.numpy(), np.empty(0, np.float32), 0.0)


def vote_apply(words: Tensor, target: Tensor, *, step: float, tie_peer: int) -> None:
    """Move `target`."""
    _launch(words, tie_peer, np.empty(0, np.uint8), target.numpy(), step)
