"""Codecs one behind the other: `TopK() | Int8() | Zstd()`.

    choose entries -> code their values -> pack the bytes

A sparse codec may be followed by a dense one, which codes its values in place of `bits`; any codec may be followed by
an entropy stage. Body: with an entropy stage 8 bytes, the number of bytes before packing, bit 63 set if they were
packed, then (if there is no dense codec in the chain) the header of the first codec's own payload; then the bytes.
Shapes and dtypes: those of the parts. State: that of the first.
Cost: 64 B + the sparse codec's side + the dense codec's body for its values, or with an entropy stage 72 B + the first
codec's payload, packed; n - 1 payloads each way for n islands; sizes are exchanged first if they vary, 8 B.
Raises: as the parts; PayloadError for a length beyond what these shapes can need, before anything is unpacked;
ConfigError for parts that do not fit.
Deviates: no paper.
Reduces to: its first codec if the rest loses nothing: an entropy stage never does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.errors import NonFiniteError
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.dense import Dense
from lowcomm.codec.flat import count, flatten, non_finite, unflatten
from lowcomm.codec.sparse import Sparse, as_type, cut_side, seed_of
from lowcomm.codec.stage import Stage
from lowcomm.types import ConfigError, Delta, Payload, PayloadError, Round, require

PACKED = 1 << 63
HEAD_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Chain(Codec):
    """A codec with another coding of its values, an entropy stage, or both behind it; write it with `|`."""

    first: Codec
    """What makes the payload, or chooses the entries."""
    values: Dense | None = None
    """What codes the values of a sparse `first`; None: `first` itself."""
    entropy: Stage | None = None
    """What packs the bytes, without loss; None: nothing."""

    linear: ClassVar[bool] = False

    @property
    def fixed_size(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Not behind an entropy stage."""
        return self.entropy is None and self.first.fixed_size

    def init(self, like: Delta) -> State:
        return self.first.init(like)

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        if self.values is not None:
            raw, after = self._with_values(self.values, delta, state, round)
            head = raw[:0]
        else:
            inner, after = self.first.encode(delta, state, round)
            head, raw = inner.data[: wire.HEADER_BYTES], inner.data[wire.HEADER_BYTES :]
        body = raw if self.entropy is None else _shrink(self.entropy, head, raw)
        return wire.pack(wire.CodecId.CHAIN, delta, round, body), after

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        body = wire.unpack(payload, wire.CodecId.CHAIN, like, round)
        head_bytes = wire.HEADER_BYTES if self.values is None else 0
        raw = body if self.entropy is None else _grow(self.entropy, body, head_bytes, most_bytes(like))
        if self.values is None:
            return self.first.decode(Payload(data=raw), like, round)
        return self._from_values(self.values, raw, like, seed_of(payload))

    def check(self) -> None:
        self.first.check()
        some = self.values is not None or self.entropy is not None
        require(some, "codec.entropy", None, "a second part", "use the first codec alone")
        if self.values is not None:
            self.values.check()
            sparse = isinstance(self.first, Sparse)
            require(sparse, "codec.first", self.first, "a sparse codec before a dense one", "TopK() | Int8()")
        if self.entropy is not None:
            self.entropy.check()
        inner = not isinstance(self.first, Chain)
        require(inner, "codec.first", self.first, "a codec that is no chain itself", "write one chain")

    def __or__(self, stage: object) -> Chain:
        return join(self, stage)

    def _with_values(self, dense: Dense, delta: Delta, state: State, round: Round) -> tuple[Tensor, State]:
        first = self._sparse()
        try:
            pieces = first.split(flatten(delta), delta, state, round)
        except NonFiniteError as error:
            raise non_finite(delta, error.index) from error
        body = torch.empty(dense.body_bytes(pieces.values.numel()), dtype=torch.uint8, device=pieces.values.device)
        try:
            dense.write(pieces.values, body, round.own_seed(), 0)
        except NonFiniteError as error:
            raise PayloadError("the pseudo-gradient is too large: a value to be sent overflows fp32") from error
        return torch.cat([pieces.side, body]), pieces.state

    def _from_values(self, dense: Dense, raw: Tensor, like: Delta, seed: int) -> Delta:
        first = self._sparse()
        side, rest = cut_side(first, raw, like)
        kept = first.value_chunks(side, like).kept
        if rest.numel() != dense.body_bytes(kept):
            raise PayloadError(f"the payload has {rest.numel()} bytes of values, expected {dense.body_bytes(kept)}")
        body = rest if rest.storage_offset() % 8 == 0 else rest.clone()
        dense.examine(body, kept)
        values = torch.empty(kept, device=body.device)
        dense.read(body, values)
        return unflatten(first.spread(first.places(side, like, seed), values, like), like)

    def _sparse(self) -> Sparse:
        if not isinstance(self.first, Sparse):
            raise ConfigError(f"{type(self.first).__name__} has no values apart: put a sparse codec first")
        return self.first


def join(first: Codec, stage: object) -> Chain:
    """`first | stage`. Raises ConfigError for parts that do not fit."""
    chain = first if isinstance(first, Chain) else None
    if isinstance(stage, Stage) and (chain is None or chain.entropy is None):
        return Chain(first=first, entropy=stage) if chain is None else dataclasses.replace(chain, entropy=stage)
    if isinstance(stage, Dense) and isinstance(first, Sparse):
        return Chain(first=first, values=stage)
    raise ConfigError(
        f"{first!r} | {stage!r} is not allowed: a sparse codec may be followed by a dense one, and any codec by one "
        "entropy stage at the end. Fix: TopK() | Int8() | Zstd()"
    )


def most_bytes(like: Delta) -> int:
    """A body longer than this is no codec's: what is packed may not claim more."""
    return 8 * count(like) + 1024 * len(like) + 65536


def _shrink(stage: Stage, head: Tensor, raw: Tensor) -> Tensor:
    plain = raw.cpu().numpy().tobytes()
    small = stage.pack(plain) if stage.pays(plain) else plain
    packed = len(small) < len(plain)
    number = len(plain) - PACKED if packed else len(plain)  # bit 63 is the sign
    size = torch.tensor([number], dtype=torch.int64).view(torch.uint8)
    rest = torch.frombuffer(bytearray(small), dtype=torch.uint8) if packed else raw
    return torch.cat([size.to(raw.device), head, rest.to(raw.device)])


def _grow(stage: Stage, body: Tensor, head_bytes: int, most: int) -> Tensor:
    if body.numel() < HEAD_BYTES + head_bytes:
        raise PayloadError(f"the payload's body has {body.numel()} bytes, its lengths need {HEAD_BYTES + head_bytes}")
    number = int(as_type(body[:HEAD_BYTES], torch.int64))
    head, rest = body[HEAD_BYTES : HEAD_BYTES + head_bytes], body[HEAD_BYTES + head_bytes :]
    size = number + PACKED if number < 0 else number
    if size > most:
        raise PayloadError(f"the payload says that it unpacks to {size} bytes, at most {most} are possible")
    if number >= 0:
        if rest.numel() != size:
            raise PayloadError(f"the payload has {rest.numel()} bytes, expected {size}")
        return torch.cat([head, rest])
    raw = stage.unpack(bytes(rest.cpu().numpy()), size)
    plain = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return torch.cat([head, plain.to(body.device)])
