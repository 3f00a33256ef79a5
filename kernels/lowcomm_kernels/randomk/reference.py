"""Eager torch form of the index sets that are not sent; the specification is in `__init__.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.philox import philox4x32
from lowcomm_kernels.topk.layout import Chunks
from lowcomm_kernels.topk.reference import flat_places


def random_indices(chunks: Chunks, seed: int, indices: Tensor) -> None:
    at = 0
    for first, count, n, k in chunks.parts():
        entry = torch.arange(k, device=indices.device)
        chunk = torch.arange(first, first + count, device=indices.device)
        word, turn, _, _ = philox4x32(chunk[:, None] * chunks.k + entry, seed)
        start = entry * n // k
        size = (entry + 1) * n // k - start
        place = start + (word * size >> 32) + (turn[:, :1] * n >> 32)
        indices[at : at + count * k] = (place % n).sort(dim=1).values.reshape(-1).to(torch.uint16)
        at += count * k


def window_indices(chunks: Chunks, turn: int, indices: Tensor) -> None:
    at = 0
    for _, count, n, k in chunks.parts():
        window = ((torch.arange(k, device=indices.device) + turn * k) % n).sort().values
        indices[at : at + count * k] = window.repeat(count).to(torch.uint16)
        at += count * k


def gather(x: Tensor, indices: Tensor, chunks: Chunks, values: Tensor) -> bool:
    """Fill `values`; False if an index lies outside its chunk."""
    wide = indices.to(torch.int64)
    tail = wide[chunks.full * chunks.k :]
    if not bool((wide < chunks.chunk).all() and (tail < chunks.tail).all()):
        return False
    torch.index_select(x, 0, flat_places(indices, chunks), out=values)
    return True
