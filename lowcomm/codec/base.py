"""The codec arrow: Delta <-> Payload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.codec.flat import flatten, unflatten
from lowcomm.types import Delta, Payload, Round

ADDED = 1 << 18
"""Elements added at a time."""

State = dict[str, Tensor]
"""What a codec carries from round to round (error feedback, warm starts): tensors by name, checkpointed."""


class Codec(ABC):
    """A frozen dataclass of settings; all state is explicit, so that it can be checkpointed and replayed.

    Delta in: fp32 tensors by name, on one device. Payload out: uint8, 1-D, contiguous, with the header of `wire`.
    """

    linear: ClassVar[bool]
    """decode(a) + decode(b) == decode(a + b): payloads may be summed on the way."""
    fixed_size: ClassVar[bool] = True
    """The payload's size depends on shapes and settings only, so that every island knows it beforehand."""

    @property
    def sets_threads(self) -> bool:
        """Whether encoding sets the process's number of threads for a while: not beside training on several."""
        return False

    @property
    def holds_back(self) -> bool:
        """Whether islands' weights hold something that was never sent, so that a run's last merge sends everything."""
        return False

    @property
    def sums_on_the_way(self) -> bool:
        """Whether no island ever sees another's contribution: then only a weighted sum can be had (`needs` "sum")."""
        return False

    @property
    def bare(self) -> Codec:
        """The codec that makes the payloads: what error feedback is wrapped around, the finest of several levels."""
        return self

    @property
    def last_merge(self) -> Codec:
        """The codec of a run's last merge, after which the islands hold the global weights."""
        return self

    def at(self, round: Round) -> Codec:
        """The codec of this round: itself, unless it is graded."""
        return self

    def level_bytes(self, like: Delta) -> list[int]:
        """Bytes of a payload at each level that a schedule may choose, the finest first; none: there is no choice."""
        return []

    def take_residual(self, state: State) -> tuple[Tensor | None, State]:
        """What stays in the island's own weights (Delta's sign, fp32 [numel]); and the state without it."""
        return None, state

    def private(self, like: Delta, round: Round) -> frozenset[str]:
        """Names of tensors that an island keeps to itself in this round: it does not take their global values."""
        return frozenset()

    def note(self, state: State) -> str | None:
        """What it decided in the last round, for the log."""
        return None

    @abstractmethod
    def init(self, like: Delta) -> State:
        """The state before the first round for a Delta of these shapes."""

    @abstractmethod
    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        """Encode `delta`; returns the payload and the state after it. Neither `delta` nor `state` is modified.

        Raises PayloadError naming the tensor that holds NaN or infinity.
        """

    @abstractmethod
    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        """fp32 tensors of the shapes of `like`. Raises PayloadError for anything that `encode` can't have made.

        round: what the header must say; None takes a payload of any round.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""

    def accumulate(self, payload: Payload, weight: float, total: Delta, round: Round | None = None) -> None:
        """`total += weight * decode(payload)`, product and sum rounded one after the other.

        A codec that can do so without a dense copy overrides it. After a PayloadError, `total` is undefined.
        """
        for name, value in self.decode(payload, total, round).items():
            rows = max(1, ADDED * value.shape[0] // max(1, value.numel())) if value.dim() else 1
            parts = zip(torch.atleast_1d(total[name]).split(rows), torch.atleast_1d(value).split(rows), strict=True)
            for part, more in parts:  # a few rows at a time, so that the product needs no second dense tensor
                part.add_(more.mul(weight))

    def encode_fed_back(
        self, delta: Delta, error: Tensor, error_out: Tensor, beta: float, state: State, round: Round
    ) -> tuple[Payload, State]:
        """Encode d = delta + beta * error and leave d - decode(payload) in `error_out`; one pass where a kernel can.

        error, error_out: fp32 [numel], maybe the same memory. Raises as `encode`; `error_out` is then undefined.
        """
        torch.mul(error, beta, out=error_out)
        error_out.add_(flatten(delta))
        wanted = unflatten(error_out, delta)
        payload, after = self.encode(wanted, state, round)
        self.accumulate(payload, -1.0, wanted, round)
        return payload, after
