"""The identity codec: fp32 as it is, 4 B per parameter.

Cost: 64 + 4 B per parameter and island per round (8 (n-1)/n without the 64 in the all-to-all sum). State: none.
Raises: PayloadError for NaN or infinity on either side, and for a payload that is not of these shapes or this round.
Reduces to: the identity, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.flat import count, flatten, non_finite, unflatten
from lowcomm.types import Delta, Payload, PayloadError, Round


@dataclass(frozen=True, kw_only=True)
class Fp32(Codec):
    """No compression: fp32 values, 4 bytes per parameter."""

    linear: ClassVar[bool] = True

    def init(self, like: Delta) -> State:
        return {}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        flat = flatten(delta)
        finite = flat.isfinite()
        if not bool(finite.all()):
            raise non_finite(delta, int(finite.to(torch.uint8).argmin()))
        return wire.pack(wire.CodecId.FP32, delta, round, flat), state

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        body = wire.unpack(payload, wire.CodecId.FP32, like, round, body_bytes=4 * count(like))
        flat = body.view(torch.float32)
        if not bool(flat.isfinite().all()):
            raise PayloadError("the payload holds NaN or infinity")
        return unflatten(flat, like)

    def check(self) -> None:
        return None
