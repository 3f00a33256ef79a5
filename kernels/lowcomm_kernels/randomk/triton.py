"""Triton form of the index sets that are not sent; one program for each chunk (specification: `__init__.py`)."""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks
from lowcomm_kernels.topk.values_triton import keep_block


@triton.jit
def _words(counter, seed):
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, low, high, low * 0, low * 0)
    return first.to(tl.int64) & 0xFFFFFFFF, second.to(tl.int64) & 0xFFFFFFFF


@triton.jit
def _random_kernel(indices, seed, chunk, k, full, tail, tail_k, KEEP: tl.constexpr):  # noqa: N803
    c = tl.program_id(0).to(tl.int64)
    keep = tl.where(c < full, k, tail_k).to(tl.int64)
    n = tl.where(c < full, chunk, tail).to(tl.int64)
    entry = tl.arange(0, KEEP).to(tl.int64)
    draw, turn = _words(c * k + entry, seed)
    offset = tl.sum(tl.where(entry == 0, turn, 0), axis=0) * n >> 32
    start = entry * n // keep
    width = (entry + 1) * n // keep - start
    place = start + (draw * width >> 32) + offset
    below = tl.sum(((entry < keep) & (place < n)).to(tl.int64), axis=0)
    # Those that the rotation carries past the end are the last ones, and come first afterwards.
    slot = tl.where(entry < below, entry + keep - below, entry - below)
    index = tl.where(entry < below, place, place - n)
    tl.store(indices + c * k + slot, index.to(tl.uint16), mask=entry < keep)


@triton.jit
def _window_kernel(indices, turn, chunk, k, full, tail, tail_k, KEEP: tl.constexpr):  # noqa: N803
    c = tl.program_id(0).to(tl.int64)
    keep = tl.where(c < full, k, tail_k).to(tl.int64)
    n = tl.where(c < full, chunk, tail).to(tl.int64)
    entry = tl.arange(0, KEEP).to(tl.int64)
    start = turn * keep % n
    around = tl.maximum(start + keep - n, 0)
    index = tl.where(entry < around, entry, start + entry - around)
    tl.store(indices + c * k + entry, index.to(tl.uint16), mask=entry < keep)


def random_indices(chunks: Chunks, seed: int, indices: Tensor) -> None:
    """Fill `indices`; `seed` is the signed form."""
    if chunks.count:
        shape = (chunks.chunk, chunks.k, chunks.full, chunks.tail, chunks.tail_k)
        _random_kernel[(chunks.count,)](indices, seed, *shape, keep_block(chunks), num_warps=1)


def window_indices(chunks: Chunks, turn: int, indices: Tensor) -> None:
    if chunks.count:
        shape = (chunks.chunk, chunks.k, chunks.full, chunks.tail, chunks.tail_k)
        _window_kernel[(chunks.count,)](indices, turn, *shape, keep_block(chunks), num_warps=1)
