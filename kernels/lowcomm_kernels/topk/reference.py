"""Eager torch form of chunked top-k; the specification is in `__init__.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.topk import values_reference
from lowcomm_kernels.topk.layout import Chunks
from lowcomm_kernels.topk.values_reference import magnitude_bits

_INFINITY = 0x7F800000


def choose(rows: Tensor, k: int) -> Tensor:
    """Ascending indices (int64 [rows, k]) of the k largest magnitudes of each row; of equal ones, the first."""
    length = rows.shape[1]
    # Magnitude, then lower index, in one integer: no two keys of a row are equal, so torch.topk has no ties to break.
    place = torch.arange(length - 1, -1, -1, device=rows.device)
    key = magnitude_bits(rows).to(torch.int64) * length + place
    return key.topk(k, dim=1).indices.sort(dim=1).values


def topk(x: Tensor, chunks: Chunks, indices: Tensor, values: Tensor) -> bool:
    """Fill `indices` and `values`; False if an element is not finite."""
    if chunks.numel and int(magnitude_bits(x).max()) >= _INFINITY:
        return False
    at = 0
    for first, count, length, k in chunks.parts():
        rows = x[first * chunks.chunk :][: count * length].view(count, length)
        chosen = choose(rows, k)
        indices[at : at + count * k] = chosen.reshape(-1).to(torch.uint16)
        values[at : at + count * k] = rows.gather(1, chosen).reshape(-1)
        at += count * k
    return True


def flat_places(indices: Tensor, chunks: Chunks) -> Tensor:
    """Positions in the whole tensor (int64 [kept]) of the indices within their chunks."""
    base = [
        torch.arange(first, first + count, device=indices.device).repeat_interleave(k) * chunks.chunk
        for first, count, _, k in chunks.parts()
    ]
    return torch.cat(base) + indices.to(torch.int64) if base else indices.to(torch.int64)


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
    error.mul_(torch.tensor(beta, dtype=torch.float32, device=error.device))
    error.add_(old if new is None else old - new)
    values = torch.empty(chunks.kept, device=error.device)
    if not topk(error, chunks, indices, values):
        return False
    values_reference.encode(values, chunks, bits, codes, scales)
    sent = torch.empty_like(values)
    values_reference.decode(codes, scales, chunks, bits, sent)
    error[flat_places(indices, chunks)] = values - sent
    return True
