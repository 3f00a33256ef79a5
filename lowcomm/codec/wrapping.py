"""What codecs that wrap another one share: payloads, sizes and threads are those of the wrapped one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from lowcomm.codec.base import Codec
from lowcomm.types import Delta, Payload, Round


@dataclass(frozen=True, kw_only=True)
class Wrapping(Codec):
    """Base of the codecs that remember what another one could not send."""

    codec: Codec

    linear: ClassVar[bool] = False

    @property
    def fixed_size(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the codec."""
        return self.codec.fixed_size

    @property
    def sets_threads(self) -> bool:
        return self.codec.sets_threads

    def level_bytes(self, like: Delta) -> list[int]:
        return self.codec.level_bytes(like)

    def around(self, now: Codec) -> Self:
        """This, with `now` in the place of its codec."""
        return self if now is self.codec else replace(self, codec=now)

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        return self.codec.decode(payload, like, round)

    def accumulate(self, payload: Payload, weight: float, total: Delta, round: Round | None = None) -> None:
        self.codec.accumulate(payload, weight, total, round)
