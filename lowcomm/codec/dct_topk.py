"""DCT and top-k: the largest coefficients of a blockwise cosine transform.

Peng, Quesnelle, Kingma, DeMo, arXiv 2411.19870.

    q = top-k of DCT(m) in each block,   Delta is decoded as DCT^-1(q),   m <- beta m + Delta - DCT^-1(q)

m: what ErrorFeedback(beta) hands over, beta its decay (the paper's momentum); DCT: 64 x 64 for matrices of at least 64
by 64 (tensors of more dimensions as matrices of their first), 64 for everything else, orthonormal; k: `k` of each 4096
coefficients; values in `bits` with a 16-bit scale per block, indices Elias-Fano coded. fp32 throughout.
Cost: 64 + 82 B per 4096 coefficients with k = 64 and 2 bits, of which padding at the edges counts; n - 1 payloads each
way for n islands.
Raises: PayloadError for NaN or infinity, naming the tensor, for coefficients that overflow, and for a payload that it
can't have made; ConfigError.
Deviates: 2-bit values where the paper sends fp32 and takes the sign of the sum; blocks of 64 for every size. Numba and
eager torch give the same bits; Triton is off by 2e-6 of a block's norm, so islands should have one kind of device.
Reduces to: the transform and its inverse, within rounding, for k = 4096 and values that `bits` can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.dct import coefficient_count, dct, idct
from lowcomm_kernels.errors import NonFiniteError
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import State
from lowcomm.codec.flat import count, device_of, first_non_finite, unflatten
from lowcomm.codec.sparse import Pieces, check_finite
from lowcomm.codec.topk import TopK
from lowcomm.types import Delta, PayloadError, Round, require

SIDE = 64
BAND = 1 << 18
"""Elements transformed back at a time, so that decoding needs no second dense vector."""


@dataclass(frozen=True, kw_only=True)
class DctTopK(TopK):
    """The k largest of each 4096 cosine coefficients."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.DCT_TOP_K
    transforms: ClassVar[bool] = True

    def space(self, like: Delta) -> int:
        matrices, rest = grouped(like)
        vectors = coefficient_count((rest,)) if rest else 0
        return sum(coefficient_count(shape) for shape in matrices.values()) + vectors

    def split(self, flat: Tensor, like: Delta, state: State, round: Round) -> Pieces:
        check_finite(flat)
        coefficients = torch.empty(self.space(like), device=flat.device)
        parts, (matrices, _), at = unflatten(flat, like), grouped(like), 0
        for name, shape in matrices.items():
            size = coefficient_count(shape)
            dct(parts[name].view(shape), out=coefficients[at : at + size])
            at += size
        vectors = [p.reshape(-1) for name, p in parts.items() if name not in matrices and p.numel()]
        if vectors:
            dct(torch.cat(vectors), out=coefficients[at:])
        try:
            return super().split(coefficients, like, state, round)
        except NonFiniteError as error:
            raise PayloadError("the pseudo-gradient is too large: a cosine coefficient overflows fp32") from error

    def spread(self, places: Tensor, values: Tensor, like: Delta) -> Tensor:
        flat = torch.empty(count(like), device=device_of(like))
        parts, (matrices, rest), at = unflatten(flat, like), grouped(like), 0
        for name, shape in matrices.items():
            matrix, rows = parts[name].view(shape), SIDE * max(1, BAND // (SIDE * shape[1]))
            for start in range(0, shape[0], rows):  # whole rows of blocks: their coefficients follow each other
                band = matrix[start : start + rows]
                size = coefficient_count(tuple(band.shape))
                idct(_between(places, values, at, size), tuple(band.shape), out=band)
                at += size
        size = coefficient_count((rest,)) if rest else 0
        vector = idct(_between(places, values, at, size), (rest,)) if rest else flat[:0]
        for name, part in parts.items():
            if name not in matrices:
                part.view(-1).copy_(vector[: part.numel()])
                vector = vector[part.numel() :]
        if first_non_finite(flat) is not None:
            raise PayloadError("the payload's coefficients overflow fp32")
        return flat

    def check(self) -> None:
        super().check()
        fix = "leave it out: a block of 64 x 64 is a chunk"
        require(self.chunk == SIDE * SIDE, "codec.chunk", self.chunk, "4096", fix)


def _between(places: Tensor, values: Tensor, at: int, size: int) -> Tensor:
    """Coefficients `at` to `at + size`, fp32 [size], of those that `places` (ascending) and `values` give."""
    bounds = torch.tensor([at, at + size], device=places.device)
    first, last = torch.searchsorted(places, bounds).tolist()
    out = torch.zeros(size, device=values.device)
    out[places[first:last] - at] = values[first:last]
    return out


def grouped(like: Delta) -> tuple[dict[str, tuple[int, int]], int]:
    """Shapes of the tensors that are transformed as matrices, by name, and the number of all other elements."""
    matrices = dict[str, tuple[int, int]]()
    for name, d in like.items():
        if d.dim() >= 2 and d.numel() and d.shape[0] >= SIDE and d.numel() // d.shape[0] >= SIDE:
            matrices[name] = (d.shape[0], d.numel() // d.shape[0])
    return matrices, count(like) - sum(a * b for a, b in matrices.values())
