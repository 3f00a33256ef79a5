"""A part of the tensors instead of all: which ones a payload holds is said in a bitmap before it.

    body: ceil(n / 8) B bitmap of the n tensors, zeros up to a multiple of 8 B, then the payload of `codec`

Decoding gives a Delta with those names only. Cost: 64 + 8 ceil(n / 64) B and the payload of what was picked.
Raises: PayloadError for anything that `encode` can't have made; ConfigError for a codec that keeps state, since another
part is sent in another round.
Reduces to: `codec`, if everything is picked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.fp32 import Fp32
from lowcomm.types import Delta, Payload, PayloadError, Round, require


@dataclass(frozen=True, kw_only=True)
class Parts(Codec):
    """Base of the codecs that send some of the tensors."""

    codec: Codec = field(default_factory=Fp32)
    """How what is sent is encoded; one without state."""

    linear: ClassVar[bool] = False
    fixed_size: ClassVar[bool] = False

    @abstractmethod
    def pick(self, delta: Delta, round: Round) -> list[bool]:
        """Whether each tensor is sent, in order; at least one is."""

    @property
    def sets_threads(self) -> bool:
        return self.codec.sets_threads

    def init(self, like: Delta) -> State:
        return {}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        picked = self.pick(delta, round)
        part = {name: d for (name, d), sent in zip(delta.items(), picked, strict=True) if sent}
        inner, _ = self.codec.encode(part, {}, round)
        bitmap = _bitmap(picked)
        data, body = wire.new(bitmap.numel() + inner.nbytes, inner.data.device)
        body[: bitmap.numel()] = bitmap.to(inner.data.device)
        body[bitmap.numel() :] = inner.data
        return wire.seal(data, wire.CodecId.PARTS, wire.shapes_hash(delta), round), state

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        body = wire.unpack(payload, wire.CodecId.PARTS, like, round)
        size = _bitmap([False] * len(like)).numel()
        if body.numel() < size:
            raise PayloadError(f"the payload's body has {body.numel()} bytes, its bitmap alone needs {size}")
        bits = np.unpackbits(body[:size].cpu().numpy(), bitorder="little").astype(bool)
        if bits[len(like) :].any() or not bits.any():
            raise PayloadError("the payload's bitmap names tensors that do not exist, or none")
        part = {name: like[name] for name, sent in zip(like, bits, strict=False) if sent}
        return self.codec.decode(Payload(data=body[size:].contiguous()), part, round)

    def check(self) -> None:
        self.codec.check()
        stateless = not self.codec.init({"probe": torch.zeros(8)})
        legal = "a codec that keeps nothing from round to round, such as Fp32, Int4 or TopK"
        require(stateless, "sync.codec.codec", type(self.codec).__name__, legal, "leave error feedback out")


def factor_of(name: str) -> str | None:
    """ "A" or "B" for a LoRA factor under peft's name, else None."""
    for letter in "AB":
        if f".lora_{letter}." in name or f".lora_embedding_{letter}." in name:
            return letter
    return None


def layer_of(name: str) -> str:
    """What comes before a LoRA factor's part of the name; the whole name of anything else."""
    return name.partition(".lora_")[0]


def _bitmap(picked: Sequence[bool]) -> torch.Tensor:
    size = -(-len(picked) // 64) * 64
    bits = np.zeros(size, dtype=np.uint8)
    bits[: len(picked)] = picked
    return torch.from_numpy(np.packbits(bits, bitorder="little"))
