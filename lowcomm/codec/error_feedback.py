"""Error feedback: what a codec could not send this round is added to the next.

Seide et al., 1-bit SGD, Interspeech 2014; Karimireddy et al., arXiv 1901.09847; decay: SparseLoCo, arXiv 2508.15706.

    d = Delta + beta e,   send C(d),   e <- d - C(d)

e: `error`, fp32, bf16 or int8 in blocks of 256, per island; Delta: fp32; C: `codec`. In a compressed all-reduce the sum
is encoded again; what that loses is kept by the island that did it (`second`, fp32, 1/islands of the vector) and added
to its next sum in the same way.
Cost on the wire: that of the codec. Memory: one fragment of `dtype` per island, and one fp32 fragment while encoding.
Raises: as the codec; ConfigError for beta out of range or an error feedback inside another.
Deviates: e may be stored in fewer bits, nearest rounding; its own rounding error is lost.
Reduces to: the identity on the codec's state if the codec loses nothing (Fp32, top-k of everything): e stays 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lowcomm_kernels.dequantise import dequantise
from lowcomm_kernels.fp8 import decode_bf16, encode_bf16
from lowcomm_kernels.quantise import Quantised, quantise
from torch import Tensor

from lowcomm.codec.base import Codec, State
from lowcomm.codec.flat import count, device_of
from lowcomm.codec.wrapping import Wrapping
from lowcomm.types import Delta, Payload, Round, require

Stored = Literal["fp32", "bf16", "int8"]
SECOND = "second"
"""Key of what the second encoding of a compressed all-reduce lost."""
_OWN = ("error", "error_scales", SECOND)


@dataclass(frozen=True, kw_only=True)
class ErrorFeedback(Wrapping):
    """Any codec, with what it could not send carried over to the next round."""

    beta: float = 1.0
    """Share of the old error that is added to the new Delta: 0 < beta <= 1; 1 loses nothing."""
    dtype: Stored = "fp32"
    """How the error is stored between rounds: 4, 2 or 1.01 bytes per parameter."""

    @property
    def sums_on_the_way(self) -> bool:
        return self.codec.sums_on_the_way

    @property
    def bare(self) -> Codec:
        return self.codec.bare

    def at(self, round: Round) -> Codec:
        return self.around(self.codec.at(round))

    def note(self, state: State) -> str | None:
        return self.codec.note(self.inner_state(state))

    def init(self, like: Delta) -> State:
        zeros = self.store(torch.zeros(count(like), device=device_of(like)))
        return {**zeros, **_prefixed(self.codec.init(like))}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        error = self.load(state)
        left = self.room_for(error)
        inner = self.inner_state(state)
        payload, after = self.codec.encode_fed_back(delta, error, left, self.beta, inner, round)
        kept = {SECOND: state[SECOND]} if SECOND in state else {}
        return payload, {**self.store(left), **kept, **_prefixed(after)}

    def check(self) -> None:
        self.codec.check()
        require(0 < self.beta <= 1, "codec.beta", self.beta, "0 < beta <= 1", "1 loses nothing, 0.95 forgets slowly")
        known = self.dtype in ("fp32", "bf16", "int8")
        require(known, "codec.dtype", self.dtype, "fp32, bf16 or int8", "bf16 halves the memory")
        plain = not isinstance(self.codec, ErrorFeedback)
        require(plain, "codec.codec", self.codec, "a codec that is no error feedback itself", "wrap it once")

    def inner_state(self, state: State) -> State:
        """The part of `state` that belongs to the wrapped codec."""
        return {key.removeprefix("codec."): t for key, t in state.items() if key not in _OWN}

    def load(self, state: State) -> Tensor:
        """The error, fp32 [numel]."""
        saved = state["error"]
        if self.dtype == "fp32":
            return saved
        if self.dtype == "bf16":
            return decode_bf16(saved)
        return dequantise(Quantised(saved, state["error_scales"]), saved.numel(), bits=8)

    def room_for(self, error: Tensor) -> Tensor:
        """Where the next error goes: state must survive a failed exchange, but from bf16 or int8 `error` is a copy."""
        return torch.empty_like(error) if self.dtype == "fp32" else error

    def store(self, error: Tensor) -> State:
        """State for this error (fp32 [numel])."""
        if self.dtype == "fp32":
            return {"error": error}
        if self.dtype == "bf16":
            return {"error": encode_bf16(error)}
        codes, scales = quantise(error, bits=8)
        return {"error": codes, "error_scales": scales}


def _prefixed(state: State) -> State:
    return {f"codec.{key}": t for key, t in state.items()}
