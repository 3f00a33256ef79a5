"""What a codec could not send stays in the island's own weights, instead of in an error buffer beside them.

Nearest: CHOCO-SGD, Koloskova, Stich, Jaggi, arXiv 1902.00340 (compressed differences to a public copy of the weights).

    Delta = theta_global - theta_local,   send q = C(Delta)
    theta_global <- outer(theta_global, mean q),   theta_local <- theta_global - (Delta - q)

The next Delta then holds what was not sent, and the island trains on from its own progress instead of making it anew:
an error buffer sends the same step again for as long as the global weights wait for it. The islands stay apart by their
residuals; the last merge (`LocalSGD.finish`) is sent by `last`, after which all hold the global weights.
Delta, residual: fp32 [numel]; C: `codec`.
Cost on the wire: that of the codec, and once per run that of `last`. Memory: one fragment while a round is under way.
Raises: as the codec; ConfigError for a codec that keeps an error itself.
Deviates: CHOCO-SGD gossips and keeps one public copy per neighbour; here the mean of all is the public copy, and an
outer optimizer moves it. The global weights lag behind the islands' until the last merge, and so does what is evaluated
before it.
Reduces to: its codec, if that loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.codec.base import Codec, State
from lowcomm.codec.dense import Dense
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.flat import count, device_of
from lowcomm.codec.int8 import Int8
from lowcomm.codec.wrapping import Wrapping
from lowcomm.types import Delta, Payload, Round, require

RESIDUAL = "residual"
"""Key of what is handed to the sync, which takes it out of the state before the next round."""


@dataclass(frozen=True, kw_only=True)
class LocalResidual(Wrapping):
    """Any codec; what it loses is neither lost nor kept twice."""

    last: Dense = Int8()
    """Sends the last merge, with everything that was kept."""

    @property
    def holds_back(self) -> bool:
        return True

    @property
    def last_merge(self) -> Codec:
        return self.last

    def init(self, like: Delta) -> State:
        return self.codec.init(like)

    def at(self, round: Round) -> Codec:
        if round.last:
            return self.last
        return self.around(self.codec.at(round))

    def note(self, state: State) -> str | None:
        return self.codec.note(state)

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        left = torch.zeros(count(delta), device=device_of(delta))
        payload, after = self.codec.encode_fed_back(delta, left, left, 0.0, state, round)
        return payload, {**after, RESIDUAL: left}

    def take_residual(self, state: State) -> tuple[Tensor | None, State]:
        return state.get(RESIDUAL), {key: t for key, t in state.items() if key != RESIDUAL}

    def check(self) -> None:
        self.codec.check()
        self.last.check()
        own = not isinstance(self.codec, (ErrorFeedback, LocalResidual))
        require(own, "codec.codec", self.codec, "a codec that keeps no error itself", "leave ErrorFeedback out")
