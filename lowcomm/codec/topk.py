"""Chunked top-k: the entries of largest magnitude of each chunk, in few bits, at a size known beforehand.

SparseLoCo, arXiv 2508.15706 (64 of 4096, 2 bits, inside error feedback with beta 0.95); Deep gradient compression,
arXiv 1712.01887; Elias 1974 and Fano 1971 for the indices.

    I = the k largest |x_i| of each chunk of C,   x_i is decoded as Q(x_i) for i in I, else 0

x: the Delta as one flat vector, fp32 [n]; C: `chunk`; k: `k`; Q: `bits` per value and a 16-bit scale per chunk
(`lowcomm_kernels.topk.values`); I: ascending in its chunk, Elias-Fano coded.
Cost: 64 + ceil(n / C) (k bits / 8 + 2 + EF(C, k)) B per payload, n - 1 payloads each way for n islands. With 64 of 4096
and 2 bits: 82 B per chunk, 0.160 bits per parameter.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: chunks of the flat vector where the paper cuts each tensor in 64 x 64 blocks, so that small tensors share one;
indices in 8 bits where the paper has 12.
Reduces to: the identity for k = chunk on values that `bits` can hold (bits=16: bfloat16 values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.elias_fano import decode_indices, encode_indices, packed_bytes
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk import Chunks, delta_topk, topk
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import State
from lowcomm.codec.flat import flatten, non_finite
from lowcomm.codec.sparse import Pieces, Sparse, check_chunk, places_of
from lowcomm.types import Delta, Payload, PayloadError, Round


@dataclass(frozen=True, kw_only=True)
class TopK(Sparse):
    """The k largest of each chunk; 0.16 bits per parameter with 64 of 4096 in 2 bits."""

    chunk: int = 4096
    """Elements of the flat vector that compete with each other, 1 to 65536."""
    k: int = 64
    """Entries kept of each chunk, 1 to `chunk`; a short last chunk keeps the same share."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.TOP_K

    def chunks(self, like: Delta) -> Chunks:
        """How the vector is cut."""
        return Chunks(self.space(like), self.chunk, self.k)

    def split(self, flat: Tensor, like: Delta, state: State, round: Round) -> Pieces:
        chunks = self.chunks(like)
        kept = topk(flat, chunks)
        return Pieces(side=encode_indices(kept.indices, chunks), values=kept.values, state=state)

    def side_bytes(self, body: Tensor, like: Delta) -> int:
        return packed_bytes(self.chunks(like))

    def value_chunks(self, side: Tensor, like: Delta) -> Chunks:
        return self.chunks(like)

    def places(self, side: Tensor, like: Delta, seed: int) -> Tensor:
        chunks = self.chunks(like)
        try:
            return places_of(decode_indices(side.contiguous(), chunks), chunks)
        except ValueError as error:
            raise PayloadError("the payload's indices do not ascend or leave their chunk") from error

    def init(self, like: Delta) -> State:
        return {}

    def encode_fed_back(
        self, delta: Delta, error: Tensor, error_out: Tensor, beta: float, state: State, round: Round
    ) -> tuple[Payload, State]:
        if self.transforms:
            return super().encode_fed_back(delta, error, error_out, beta, state, round)
        chunks = self.chunks(delta)
        if error_out.data_ptr() != error.data_ptr():
            error_out.copy_(error)
        try:
            sent = delta_topk(flatten(delta), None, error_out, chunks, beta=beta, bits=self.bits)
        except NonFiniteError as failure:
            raise non_finite(delta, failure.index) from failure
        parts = [encode_indices(sent.indices, chunks), sent.scales.view(torch.uint8), sent.codes]
        return wire.pack(self.codec_id, delta, round, torch.cat(parts)), state

    def check(self) -> None:
        super().check()
        check_chunk(self.chunk, self.k)
