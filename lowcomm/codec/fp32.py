"""The identity codec: fp32 as it is, 4 B per parameter.

Cost: 4 B per parameter and island per round (8 (n-1)/n with the all-to-all sum). State: none.
Raises: PayloadError for a payload of another size.
Reduces to: the identity, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lowcomm.codec.base import Codec, State
from lowcomm.types import Delta, Payload, PayloadError, Round


@dataclass(frozen=True, kw_only=True)
class Fp32(Codec):
    """No compression: fp32 values, 4 bytes per parameter."""

    linear: ClassVar[bool] = True

    def init(self, like: Delta) -> State:
        return {}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        flat = torch.cat([d.reshape(-1) for d in delta.values()])
        return Payload(data=flat.view(torch.uint8)), state

    def decode(self, payload: Payload, like: Delta) -> Delta:
        expected_bytes = 4 * sum(d.numel() for d in like.values())
        if payload.nbytes != expected_bytes:
            raise PayloadError(f"fp32 payload has {payload.nbytes} bytes, the shapes need {expected_bytes}")
        flat = payload.data.view(torch.float32)
        parts = flat.split([d.numel() for d in like.values()])
        return {name: part.view(d.shape) for (name, d), part in zip(like.items(), parts, strict=True)}

    def check(self) -> None:
        return None
