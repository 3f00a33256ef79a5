"""CPU path: each task owns a run of blocks, reads its inputs once and keeps a block's scratch in L1."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.bits import next_power_of_two
from lowcomm_kernels.blocks_numba import INNER, PARALLEL, RUN, encode_and_subtract, encode_block, first_bad
from lowcomm_kernels.dispatch import raise_bad, task_count


@njit(**RUN)
def _quantise_run(x, bits, block, stochastic, seed, offset, first, last, packed, scales, codes, random, fold):
    for b in range(first, last):
        start = b * block
        stop = min(start + block, x.size)
        part = packed[start * bits // 8 : (stop * bits + 7) // 8]
        scale = encode_block(x[start:stop], bits, stochastic, seed, offset + start, part, codes, random, fold)
        if scale < 0:
            return start + first_bad(x[start:stop])
        scales[b] = np.int16(scale)
    return -1


@njit(**PARALLEL)
def _quantise(x, bits, block, width, stochastic, seed, offset, packed, scales, bad):
    for t in prange(bad.size):
        first = t * scales.size // bad.size
        last = (t + 1) * scales.size // bad.size
        codes = np.empty(width, np.int8)
        random = np.empty(width, np.uint16)
        fold = np.empty(width, np.float32)
        bad[t] = _quantise_run(
            x, bits, block, stochastic, seed, offset, first, last, packed, scales, codes, random, fold
        )


@njit(**INNER)
def delta(old, new, error, beta, d):
    if new.size:
        for i in range(d.size):
            d[i] = (old[i] - new[i]) + beta * error[i]
    else:
        for i in range(d.size):
            d[i] = old[i] + beta * error[i]


@njit(**RUN)
def _delta_run(
    old, new, error, beta, bits, block, stochastic, seed, offset, first, last, packed, scales, error_out,
    scratch, codes, random, fold,
):  # fmt: skip
    for b in range(first, last):
        start = b * block
        stop = min(start + block, old.size)
        d = scratch[: stop - start]
        delta(old[start:stop], new[start:stop], error[start:stop], beta, d)
        part = packed[start * bits // 8 : (stop * bits + 7) // 8]
        scale = encode_and_subtract(
            d, bits, stochastic, seed, offset + start, part, codes, random, fold, error_out[start:stop]
        )
        if scale < 0:
            return start + first_bad(d)
        scales[b] = np.int16(scale)
    return -1


@njit(**PARALLEL)
def _delta_quantise(
    old, new, error, beta, bits, block, width, stochastic, seed, offset, packed, scales, error_out, bad
):
    for t in prange(bad.size):
        first = t * scales.size // bad.size
        last = (t + 1) * scales.size // bad.size
        # d lives in L1: `error` may be `error_out`, and a buffer both read and written would block vectors.
        scratch = np.empty(block, np.float32)
        codes = np.empty(width, np.int8)
        random = np.empty(width, np.uint16)
        fold = np.empty(width, np.float32)
        bad[t] = _delta_run(
            old, new, error, beta, bits, block, stochastic, seed, offset, first, last, packed, scales, error_out,
            scratch, codes, random, fold,
        )  # fmt: skip


def quantise(
    x: Tensor, codes: Tensor, scales: Tensor, *, bits: int, block: int, stochastic: bool, seed: int, offset: int
) -> None:
    """Fill `codes` and `scales`; `seed` is signed. Raises NonFiniteError."""
    bad = np.empty(task_count(scales.numel()), np.int64)
    width = next_power_of_two(block)
    _quantise(
        x.numpy(), bits, block, width, stochastic, seed, offset, codes.numpy(), scales.numpy(), bad
    )  # fmt: skip
    raise_bad(bad)


def delta_quantise(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    error_out: Tensor,
    codes: Tensor,
    scales: Tensor,
    *,
    beta: float,
    bits: int,
    block: int,
    stochastic: bool,
    seed: int,
    offset: int,
) -> None:
    """Fill `codes`, `scales` and `error_out` (may be `error`); `seed` is signed. Raises NonFiniteError."""
    bad = np.empty(task_count(scales.numel()), np.int64)
    width = next_power_of_two(block)
    new_view = np.empty(0, np.float32) if new is None else new.numpy()
    _delta_quantise(
        old.numpy(), new_view, error.numpy(), np.float32(beta), bits, block, width, stochastic, seed, offset,
        codes.numpy(), scales.numpy(), error_out.numpy(), bad,
    )  # fmt: skip
    raise_bad(bad)
