"""A sparse codec whose values a dense one codes: `TopK() | Int8()`.

No paper: SparseLoCo, arXiv 2508.15706, and DeMo, arXiv 2411.19870, each fix one pair.

    I, v = first(x),   x_i is decoded as values(v)_i for i in I, else 0

x: the Delta as one flat vector, fp32 [n]; I: the entries that `first` chooses; v: their values, fp32 [kept], coded by
`values` in its own blocks. Body: the side of `first` (what tells the receiver I), then the body of `values`. State:
that of `first`.
Cost: 64 B + the side + the dense body for `kept` elements per payload, n - 1 payloads each way for n islands.
Raises: as the parts; ConfigError for a `first` that chooses no entries.
Deviates: no paper.
Reduces to: `first` with exact values for a dense codec that loses nothing on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from lowcomm_kernels.errors import NonFiniteError

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.dense import Dense
from lowcomm.codec.flat import flatten, non_finite, unflatten
from lowcomm.codec.sparse import Sparse, cut_side, seed_of
from lowcomm.types import Delta, Payload, PayloadError, Round, require

if TYPE_CHECKING:
    from lowcomm.codec.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Recoded(Codec):
    """A sparse codec with a dense one for its values; write it with `|`."""

    first: Sparse
    """What chooses the entries; its own `bits` are not used."""
    values: Dense
    """What codes their values."""

    linear: ClassVar[bool] = False

    @property
    def fixed_size(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the sparse codec."""
        return self.first.fixed_size

    def init(self, like: Delta) -> State:
        return self.first.init(like)

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        try:
            pieces = self.first.split(flatten(delta), delta, state, round)
        except NonFiniteError as error:
            raise non_finite(delta, error.index) from error
        size = self.values.body_bytes(pieces.values.numel())
        body = torch.empty(size, dtype=torch.uint8, device=pieces.values.device)
        try:
            self.values.write(pieces.values, body, round.own_seed(), 0)
        except NonFiniteError as error:
            raise PayloadError("the pseudo-gradient is too large: a value to be sent overflows fp32") from error
        return wire.pack(wire.CodecId.CHAIN, delta, round, torch.cat([pieces.side, body])), pieces.state

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        side, rest = cut_side(self.first, wire.unpack(payload, wire.CodecId.CHAIN, like, round), like)
        kept = self.first.value_chunks(side, like).kept
        size = self.values.body_bytes(kept)
        if rest.numel() != size:
            raise PayloadError(f"the payload has {rest.numel()} bytes of values, expected {size}")
        body = rest if rest.storage_offset() % 8 == 0 else rest.clone()
        self.values.examine(body, kept)
        values = torch.empty(kept, device=body.device)
        self.values.read(body, values)
        places = self.first.places(side, like, seed_of(payload))
        return unflatten(self.first.spread(places, values, like), like)

    def check(self) -> None:
        for part, kind, fix in ((self.first, Sparse, "TopK() | Int8()"), (self.values, Dense, "TopK() | Int8()")):
            field = "codec.first" if part is self.first else "codec.values"
            require(isinstance(part, kind), field, part, f"a codec of the kind {kind.__name__}", fix)
            part.check()

    def __or__(self, stage: Stage) -> Codec:
        from lowcomm.codec.chain import join

        return join(self, stage)
