"""The codec arrow: Delta <-> Payload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from lowcomm.types import Delta, Payload, Round

State = dict[str, Tensor]
"""What a codec carries from round to round (error feedback, warm starts): tensors by name, checkpointed."""


class Codec(ABC):
    """A frozen dataclass of settings; all state is explicit, so that it can be checkpointed and replayed.

    Delta in: fp32 tensors by name, on one device. Payload out: uint8, 1-D, contiguous, header included.
    """

    linear: ClassVar[bool]
    """decode(a) + decode(b) == decode(a + b): payloads may be summed on the way."""
    fixed_size: ClassVar[bool] = True
    """The payload's size depends on shapes and settings only, so that every island knows it beforehand."""

    @abstractmethod
    def init(self, like: Delta) -> State:
        """The state before the first round for a Delta of these shapes."""

    @abstractmethod
    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        """Encode `delta` (not modified); returns the payload and the state after it."""

    @abstractmethod
    def decode(self, payload: Payload, like: Delta) -> Delta:
        """fp32 tensors of the shapes of `like`. Raises PayloadError for anything that `encode` can't have made."""

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""
