"""Eager torch form of `sparse_decode`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.topk import values_reference
from lowcomm_kernels.topk.layout import Chunks
from lowcomm_kernels.topk.reference import flat_places


def sparse_decode(
    indices: Tensor, codes: Tensor, scales: Tensor, weights: Tensor, chunks: Chunks, bits: int, out: Tensor
) -> bool:
    """Fill `out`; False if an index leaves its chunk or a value is not finite."""
    out.zero_()
    values = torch.empty(chunks.kept, device=out.device)
    tail = indices[:, chunks.full * chunks.k :].to(torch.int64)
    inside = (indices.to(torch.int64) < chunks.chunk).all() and (tail < chunks.tail).all()
    if not bool(inside):
        return False
    for peer, weight in enumerate(weights):
        if not values_reference.decode(codes[peer], scales[peer], chunks, bits, values):
            return False
        place = flat_places(indices[peer], chunks)
        out[place] = out[place] + values * weight
    return True
