"""Random-k: entries that the round's seed draws, so that no index is sent.

Konecny et al., arXiv 1610.05492 (random masks); Stich et al., arXiv 1809.07599 (random-k with memory).

    I = k entries of each chunk drawn from the round's seed,   x_i is decoded as Q(s x_i) for i in I, else 0

x: the Delta as one flat vector, fp32 [n]; Q: `bits` per value, a 16-bit scale per chunk; s: 1, or chunk / k with
`unbiased`. All islands draw the same entries, which `lowcomm_kernels.randomk` does by strata.
Cost: 64 + ceil(n / chunk) (k bits / 8 + 2) B per payload, n - 1 payloads each way for n islands: 0.035 bits per
parameter with 64 of 4096 and 2 bits, less than a quarter of top-k's.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: exactly k of each chunk, one in each of k strata, where the papers draw freely.
Reduces to: the identity for k = chunk on values that `bits` can hold (bits=16: bfloat16 values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.randomk import gather, random_indices
from lowcomm_kernels.topk import Chunks
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import State
from lowcomm.codec.flat import count
from lowcomm.codec.sparse import Pieces, Sparse, check_chunk, check_finite, places_of
from lowcomm.types import Delta, Round, require


@dataclass(frozen=True, kw_only=True)
class RandomK(Sparse):
    """k entries of each chunk, drawn anew each round, the same on every island."""

    chunk: int = 4096
    """Elements of the flat vector of which k are drawn, 1 to 65536."""
    k: int = 64
    """Entries drawn of each chunk, 1 to `chunk`; a short last chunk keeps the same share."""
    unbiased: bool = False
    """Multiply by chunk / k, so that the mean over rounds is the Delta. Not inside ErrorFeedback: it would diverge."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.RANDOM_K

    def split(self, flat: Tensor, like: Delta, state: State, round: Round) -> Pieces:
        check_finite(flat)
        chunks = self._chunks(like)
        indices = random_indices(chunks, seed=round.seed % 2**64, device=flat.device)
        side = torch.empty(0, dtype=torch.uint8, device=flat.device)
        values = gather(flat, indices, chunks)
        if self.unbiased:
            enlarge(values, chunks)
        return Pieces(side=side, values=values, state=state)

    def side_bytes(self, body: Tensor, like: Delta) -> int:
        return 0

    def value_chunks(self, side: Tensor, like: Delta) -> Chunks:
        return self._chunks(like)

    def places(self, side: Tensor, like: Delta, seed: int) -> Tensor:
        chunks = self._chunks(like)
        return places_of(random_indices(chunks, seed=seed, device=side.device), chunks)

    def init(self, like: Delta) -> State:
        return {}

    def check(self) -> None:
        super().check()
        check_chunk(self.chunk, self.k)
        fix = "leave out unbiased, and wrap it in ErrorFeedback"
        require(isinstance(self.unbiased, bool), "codec.unbiased", self.unbiased, "True or False", fix)

    def _chunks(self, like: Delta) -> Chunks:
        return Chunks(count(like), self.chunk, self.k)


def enlarge(values: Tensor, chunks: Chunks) -> None:
    """Multiply each chunk's values (fp32 [kept]) by the number of its elements over that of its kept ones."""
    at = 0
    for _, number, length, k in chunks.parts():
        values[at : at + number * k].mul_(length / k)
        at += number * k
