"""numba form of chunked top-k, alone and fused with error feedback; the specification is in `__init__.py`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks, chunk_code_bytes
from lowcomm_kernels.topk.select_numba import INFINITY, load_keys, scratch, select
from lowcomm_kernels.topk.values_numba import decode_chunk, encode_chunk

_JOBS = 64
"""Pieces that the threads share; each has one scratch. More than threads, so that an early thread can take another."""


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _topk(x, chunk, k, full, tail_k, indices, values, bad):
    jobs = bad.size
    count = full + (1 if tail_k else 0)
    for job in prange(jobs):
        room = scratch(chunk, k)
        for c in range(count * job // jobs, count * (job + 1) // jobs):
            part = x[c * chunk : (c + 1) * chunk]
            keep = k if c < full else tail_k
            load_keys(part, room[0])
            chosen = indices[c * k : c * k + keep]
            if select(part.size, keep, room, chosen) >= INFINITY:
                bad[job] = 1
                continue
            kept = values[c * k : c * k + keep]
            for i in range(keep):
                kept[i] = part[chosen[i]]


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _delta_topk(old, new, has_new, error, beta, chunk, k, full, tail_k, size, bits, indices, codes, scales, bad):
    jobs = bad.size
    count = full + (1 if tail_k else 0)
    for job in prange(jobs):
        room = scratch(chunk, k)
        kept, sums = np.empty(k, np.float32), np.empty(k, np.int64)
        for c in range(count * job // jobs, count * (job + 1) // jobs):
            e = error[c * chunk : (c + 1) * chunk]
            a = old[c * chunk : (c + 1) * chunk]
            if has_new:
                b = new[c * chunk : (c + 1) * chunk]
                for i in range(e.size):
                    e[i] = (a[i] - b[i]) + beta * e[i]
            else:
                for i in range(e.size):
                    e[i] = a[i] + beta * e[i]
            keep = k if c < full else tail_k
            load_keys(e, room[0])
            chosen = indices[c * k : c * k + keep]
            if select(e.size, keep, room, chosen) >= INFINITY:
                bad[job] = 1
                continue
            v = kept[:keep]
            for i in range(keep):
                v[i] = e[chosen[i]]
            code = codes[c * size :] if c == full else codes[c * size : (c + 1) * size]
            word = encode_chunk(v, sums, code, bits)
            if bits != 16:
                scales[c] = np.uint16(word)
            decode_chunk(code, word, bits, v)
            for i in range(keep):
                e[chosen[i]] -= v[i]


def _jobs(chunks: Chunks) -> np.ndarray:
    return np.zeros(min(_JOBS, max(1, chunks.count)), np.uint8)


def topk(x: Tensor, chunks: Chunks, indices: Tensor, values: Tensor) -> bool:
    """Fill `indices` and `values`; False if an element is not finite."""
    bad = _jobs(chunks)
    shape = (chunks.chunk, chunks.k, chunks.full, chunks.tail_k)
    _topk(x.numpy(), *shape, indices.numpy(), values.numpy(), bad)
    return not bad.any()


def delta_topk(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    beta: float,
    chunks: Chunks,
    bits: int,
    indices: Tensor,
    codes: Tensor,
    scales: Tensor,
) -> bool:
    """Fill the outputs and update `error`; False if a sum is not finite."""
    bad = _jobs(chunks)
    shape = (chunks.chunk, chunks.k, chunks.full, chunks.tail_k, chunk_code_bytes(chunks.k, bits), bits)
    second = old if new is None else new
    _delta_topk(
        old.numpy(), second.numpy(), new is not None, error.numpy(), np.float32(beta), *shape,
        indices.numpy(), codes.numpy(), scales.numpy(), bad,
    )  # fmt: skip
    return not bad.any()
