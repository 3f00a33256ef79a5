"""Partial sharing: a window of the entries that rotates from round to round, so that no index is sent.

Gogineni et al., PSO-Fed, arXiv 2110.13607.

    S_t = the k entries of each chunk from t k mod n on,   x_i is decoded as Q(x_i) for i in S_t, else 0

x: the Delta as one flat vector, fp32 [n]; S_t: the selection matrix's diagonal; t: `turn`, int64, counted up each time
that this fragment is sent; Q: `bits` per value, a 16-bit scale per chunk. With `apart`, island i is at turn t + i
(uncoordinated sharing in the paper), else all share the same entries (coordinated).
Cost: 64 + 8 + ceil(n / chunk) (k bits / 8 + 2) B per payload, n - 1 payloads each way for n islands.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: in few bits where the paper sends numbers. Inside LocalResidual, entries that are not shared stay on their
island as in the paper; inside ErrorFeedback, all islands take the global weights and a buffer holds what waits.
Reduces to: the identity for k = chunk on values that `bits` can hold (bits=16: bfloat16 values). After
ceil(chunk / k) rounds every entry has been sent once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.randomk import gather, window_indices
from lowcomm_kernels.topk import Chunks
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import State
from lowcomm.codec.flat import count
from lowcomm.codec.sparse import Pieces, Sparse, as_type, check_chunk, check_finite, places_of
from lowcomm.types import Delta, PayloadError, Round, require

MOST_TURNS = 1 << 40
"""A turn is below this."""


@dataclass(frozen=True, kw_only=True)
class PartialSharing(Sparse):
    """k entries of each chunk in turn."""

    chunk: int = 4096
    """Elements of the flat vector that take turns, 1 to 65536."""
    k: int = 64
    """Entries shared of each chunk in a round, 1 to `chunk`; a short last chunk shares the same part."""
    apart: bool = False
    """Each island shares another window, instead of all the same."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.PARTIAL_SHARING

    def split(self, flat: Tensor, like: Delta, state: State, round: Round) -> Pieces:
        check_finite(flat)
        ahead = round.island if self.apart and round.island is not None else 0
        turn = (int(state["turn"]) + ahead) % MOST_TURNS
        chunks = self._chunks(like)
        values = gather(flat, window_indices(chunks, turn=turn, device=flat.device), chunks)
        side = torch.tensor([turn], dtype=torch.int64).view(torch.uint8).to(flat.device)
        return Pieces(side=side, values=values, state={"turn": state["turn"] + 1})

    def side_bytes(self, body: Tensor, like: Delta) -> int:
        return 8

    def value_chunks(self, side: Tensor, like: Delta) -> Chunks:
        return self._chunks(like)

    def places(self, side: Tensor, like: Delta, seed: int) -> Tensor:
        turn = int(as_type(side, torch.int64))
        if not 0 <= turn < MOST_TURNS:
            raise PayloadError(f"the payload's turn is {turn}, expected 0 to 2**40 - 1")
        chunks = self._chunks(like)
        return places_of(window_indices(chunks, turn=turn, device=side.device), chunks)

    def init(self, like: Delta) -> State:
        return {"turn": torch.zeros((), dtype=torch.int64)}

    def check(self) -> None:
        super().check()
        check_chunk(self.chunk, self.k)
        require(isinstance(self.apart, bool), "codec.apart", self.apart, "True or False", "leave it out")

    def _chunks(self, like: Delta) -> Chunks:
        return Chunks(count(like), self.chunk, self.k)
