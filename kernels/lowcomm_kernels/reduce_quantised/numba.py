"""CPU path: the sum of a block lives in L1, every peer's bytes are read once."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.bits import next_power_of_two
from lowcomm_kernels.blocks_numba import (
    INNER,
    PARALLEL,
    RUN,
    encode_and_subtract,
    encode_block,
    first_bad,
    unpack,
    widen,
)
from lowcomm_kernels.dequantise.numba import add_levels
from lowcomm_kernels.dispatch import flat_rows, raise_bad, task_count


@njit(**INNER)
def _sum_block(packed, packed_step, scales, scales_step, weights, bits, block, b, acc, codes):
    start = b * block
    for i in range(acc.size):
        acc[i] = np.float32(0.0)
    low = start * bits // 8
    high = ((start + acc.size) * bits + 7) // 8
    for w in range(weights.size):
        part = packed[w * packed_step + low : w * packed_step + high]
        scale = widen(scales[w * scales_step + b])
        levels = part.view(np.int8) if bits == 8 else codes
        if bits != 8:
            unpack(part, bits, codes)
        add_levels(levels, scale, weights[w], acc)


@njit(**RUN)
def _float_run(packed, packed_step, scales, scales_step, weights, bits, block, first, last, out, codes):
    for b in range(first, last):
        acc = out[b * block : min((b + 1) * block, out.size)]
        _sum_block(packed, packed_step, scales, scales_step, weights, bits, block, b, acc, codes)


@njit(**RUN)
def _run(
    packed, packed_step, scales, scales_step, weights, numel, bits, out_bits, block, stochastic, seed, offset,
    first, last, out, out_scales, error, scratch, codes, random, fold,
):  # fmt: skip
    for b in range(first, last):
        start = b * block
        stop = min(start + block, numel)
        acc = scratch[: stop - start]
        _sum_block(packed, packed_step, scales, scales_step, weights, bits, block, b, acc, codes)
        part = out[start * out_bits // 8 : (stop * out_bits + 7) // 8]
        if error.size:
            scale = encode_and_subtract(
                acc, out_bits, stochastic, seed, offset + start, part, codes, random, fold, error[start:stop]
            )
        else:
            scale = encode_block(acc, out_bits, stochastic, seed, offset + start, part, codes, random, fold)
        if scale < 0:
            return start + first_bad(acc)
        out_scales[b] = np.int16(scale)
    return -1


@njit(**PARALLEL)
def _to_float(packed, packed_step, scales, scales_step, weights, bits, block, width, blocks, tasks, out):
    for t in prange(tasks):
        codes = np.empty(width, np.int8)
        first = t * blocks // tasks
        last = (t + 1) * blocks // tasks
        _float_run(packed, packed_step, scales, scales_step, weights, bits, block, first, last, out, codes)


@njit(**PARALLEL)
def _reduce(
    packed, packed_step, scales, scales_step, weights, numel, bits, out_bits, block, width, stochastic, seed, offset,
    out, out_scales, error, bad,
):  # fmt: skip
    for t in prange(bad.size):
        first = t * out_scales.size // bad.size
        last = (t + 1) * out_scales.size // bad.size
        scratch = np.empty(block, np.float32)
        codes = np.empty(width, np.int8)
        random = np.empty(width, np.uint16)
        fold = np.empty(width, np.float32)
        bad[t] = _run(
            packed, packed_step, scales, scales_step, weights, numel, bits, out_bits, block, stochastic, seed, offset,
            first, last, out, out_scales, error, scratch, codes, random, fold,
        )  # fmt: skip


def reduce_to_float(codes: Tensor, scales: Tensor, weights: Tensor, out: Tensor, *, bits: int, block: int) -> None:
    """Fill `out`."""
    packed, packed_step = flat_rows(codes)
    flat_scales, scales_step = flat_rows(scales)
    blocks = scales.shape[1]
    _to_float(
        packed.numpy(), packed_step, flat_scales.numpy(), scales_step, weights.numpy(), bits, block,
        next_power_of_two(block), blocks, task_count(blocks), out.numpy(),
    )  # fmt: skip


def reduce_quantised(
    codes: Tensor,
    scales: Tensor,
    weights: Tensor,
    out_codes: Tensor,
    out_scales: Tensor,
    error_out: Tensor | None,
    *,
    numel: int,
    bits: int,
    out_bits: int,
    block: int,
    stochastic: bool,
    seed: int,
    offset: int,
) -> None:
    """Fill the outputs; `seed` is signed. Raises NonFiniteError."""
    packed, packed_step = flat_rows(codes)
    flat_scales, scales_step = flat_rows(scales)
    error = np.empty(0, np.float32) if error_out is None else error_out.numpy()
    bad = np.empty(task_count(out_scales.numel()), np.int64)
    _reduce(
        packed.numpy(), packed_step, flat_scales.numpy(), scales_step, weights.numpy(), numel, bits, out_bits, block,
        next_power_of_two(block), stochastic, seed, offset, out_codes.numpy(), out_scales.numpy(), error, bad,
    )  # fmt: skip
    raise_bad(bad)
