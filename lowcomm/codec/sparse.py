"""What the sparse codecs share: the values of some entries, and beside them what tells the receiver which ones.

Body: side (bytes that give the places), then scales (uint16) and codes of the values, as
`lowcomm_kernels.topk.values` specifies them. `|` puts another coding of the values, or an entropy stage, behind one.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk import Chunks, Coded, decode_values, encode_values
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.flat import count, device_of, first_non_finite, flatten, non_finite, unflatten
from lowcomm.types import Delta, Payload, PayloadError, Round, require

VALUE_CHUNK = 4096
"""Values under one scale, where their number varies."""
ADDED = 1 << 18
"""Entries added at a time."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a sparse codec makes of a Delta: `side` uint8 [any], `values` fp32 [kept], the state after it."""

    side: Tensor
    values: Tensor
    state: State


@dataclass(frozen=True, kw_only=True)
class Sparse(Codec):
    """Base of the codecs that send some entries; subclasses choose them."""

    bits: Literal[2, 8, 16] = 2
    """Bits per value: 2 (two magnitudes and a sign for each chunk), 8 (integers under one scale), 16 (bfloat16)."""

    linear: ClassVar[bool] = False
    codec_id: ClassVar[wire.CodecId]
    transforms: ClassVar[bool] = False
    """Entries of a transform are sent, not of the Delta itself."""

    @abstractmethod
    def split(self, flat: Tensor, like: Delta, state: State, round: Round) -> Pieces:
        """Choose entries of `flat` (fp32 [n], finite or not). Raises NonFiniteError."""

    @abstractmethod
    def side_bytes(self, body: Tensor, like: Delta) -> int:
        """How many bytes of `body` (uint8, from anybody) are the side. Raises PayloadError if it can't tell."""

    @abstractmethod
    def value_chunks(self, side: Tensor, like: Delta) -> Chunks:
        """How the values lie in chunks, for a side of the size that `side_bytes` gave."""

    @abstractmethod
    def places(self, side: Tensor, like: Delta, seed: int) -> Tensor:
        """int64 [kept], no place twice, on the side's device; `seed` is the round's. Raises PayloadError."""

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        try:
            pieces = self.split(flatten(delta), delta, state, round)
        except NonFiniteError as error:
            raise non_finite(delta, error.index) from error
        chunks = self.value_chunks(pieces.side, delta)
        try:
            coded = encode_values(pieces.values, chunks, bits=self.bits)
        except NonFiniteError as error:
            raise PayloadError("the pseudo-gradient is too large: a value to be sent overflows fp32") from error
        parts = [pieces.side, coded.scales.view(torch.uint8), coded.codes]
        return wire.pack(self.codec_id, delta, round, torch.cat(parts)), pieces.state

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        places, values = self._read(payload, like, round)
        return unflatten(self.spread(places, values, like), like)

    def accumulate(self, payload: Payload, weight: float, total: Delta, round: Round | None = None) -> None:
        if self.transforms:
            super().accumulate(payload, weight, total, round)
            return
        places, values = self._read(payload, total, round)
        flat = flatten(total)
        for start in range(0, places.numel(), ADDED):  # a place comes once, so no order matters
            here = places[start : start + ADDED]
            flat[here] += values[start : start + ADDED] * weight
        for name, value in unflatten(flat, total).items():
            if value.data_ptr() != total[name].data_ptr():  # `flatten` had to copy
                total[name].copy_(value)

    def space(self, like: Delta) -> int:
        """Length of the vector whose entries are sent; another one than the Delta's for transforms."""
        return count(like)

    def spread(self, places: Tensor, values: Tensor, like: Delta) -> Tensor:
        """fp32 [n] with `values` at `places`, zero elsewhere. Raises PayloadError if a result is not finite."""
        flat = torch.zeros(self.space(like), device=device_of(like))
        flat[places] = values
        return flat

    def check(self) -> None:
        require(self.bits in (2, 8, 16), "codec.bits", self.bits, "2, 8 or 16", "2 with error feedback")

    def __or__(self, stage: object) -> Codec:
        from lowcomm.codec.chain import join

        return join(self, stage)

    def _read(self, payload: Payload, like: Delta, round: Round | None) -> tuple[Tensor, Tensor]:
        body = wire.unpack(payload, self.codec_id, like, round)
        side, rest = cut_side(self, body, like)
        chunks = self.value_chunks(side, like)
        at = 2 * chunks.scale_count(self.bits)
        if rest.numel() != at + chunks.code_bytes(self.bits):
            size = at + chunks.code_bytes(self.bits)
            raise PayloadError(f"the payload has {rest.numel()} bytes of values, expected {size}")
        coded = Coded(rest[at:], as_type(rest[:at], torch.uint16))
        try:
            values = decode_values(coded, chunks, bits=self.bits)
        except ValueError as error:
            raise PayloadError("a value of the payload is NaN, infinite or one that no encoder writes") from error
        return self.places(side, like, seed_of(payload)), values


def cut_side(codec: Sparse, body: Tensor, like: Delta) -> tuple[Tensor, Tensor]:
    """Side and rest of a body. Raises PayloadError."""
    size = codec.side_bytes(body, like)
    if body.numel() < size:
        raise PayloadError(f"the payload's body has {body.numel()} bytes, its places alone need {size}")
    return body[:size], body[size:]


def as_type(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes viewed as `dtype`; copied where they start at an odd place."""
    return (raw if raw.storage_offset() % dtype.itemsize == 0 else raw.clone()).view(dtype)


def seed_of(payload: Payload) -> int:
    """The round's seed that an unpacked payload's header holds: 64 bits."""
    return wire.Header.of(payload.data).seed


def check_finite(flat: Tensor) -> None:
    """Raise NonFiniteError at the first element that is NaN or infinite."""
    index = first_non_finite(flat)
    if index is not None:
        raise NonFiniteError(index)


def places_of(indices: Tensor, chunks: Chunks) -> Tensor:
    """int64 [kept]: places in the whole vector of indices (uint16) within their chunks."""
    places, at = torch.empty(chunks.kept, dtype=torch.int64, device=indices.device), 0
    for first, number, _, k in chunks.parts():
        rows = places[at : at + number * k].view(number, k)
        rows.copy_(indices[at : at + number * k].view(number, k))
        rows.add_(torch.arange(first, first + number, device=indices.device).mul_(chunks.chunk)[:, None])
        at += number * k
    return places


def check_chunk(chunk: int, k: int) -> None:
    """Raise ConfigError for a chunk that indices of 16 bits can't reach, or a k outside it."""
    require(1 <= chunk <= 65536, "codec.chunk", chunk, "1 to 65536", "4096 suits most models")
    require(1 <= k <= chunk, "codec.k", k, f"1 to {chunk}, the chunk", "64 of 4096 are 1.6 %")
