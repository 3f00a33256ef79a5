"""Dense codecs from fine to coarse, of which a schedule picks one in each round.

The bits per round that follow the link: DiLoCoX, arXiv 2506.21263, adapts rank and bits; see lowcomm.schedule.Adaptive.

    C_t = codecs[level_t],   level_t: `Round.level`, equal on every island

Cost: that of the codec of the round. With a schedule that does not adapt, always the first one's.
Raises: as its codecs; ConfigError for codecs that can't stand for each other; PayloadError for an unknown level.
Deviates: nothing is adapted here; what was decided is in the run's log.
Reduces to: its codec, if there is one only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowcomm.codec.base import Codec, State
from lowcomm.codec.dense import Dense
from lowcomm.codec.flat import count
from lowcomm.codec.int4 import Int4
from lowcomm.codec.int8 import Int8
from lowcomm.codec.two_bit import TwoBit
from lowcomm.types import Delta, Payload, PayloadError, Round, require


@dataclass(frozen=True, kw_only=True)
class Graded(Codec):
    """One of `codecs` in each round, the finest first; wrap it in ErrorFeedback."""

    codecs: tuple[Dense, ...] = (Int8(), Int4(), TwoBit())
    """From fine to coarse."""

    linear: ClassVar[bool] = False

    @property
    def sums_on_the_way(self) -> bool:
        return self.codecs[0].sums_on_the_way

    @property
    def bare(self) -> Codec:
        return self.codecs[0]

    def init(self, like: Delta) -> State:
        return {}

    def at(self, round: Round) -> Codec:
        if not 0 <= round.level < len(self.codecs):
            raise PayloadError(f"the round asks for level {round.level}, there are {len(self.codecs)}")
        return self.codecs[round.level]

    def level_bytes(self, like: Delta) -> list[int]:
        return [codec.body_bytes(count(like)) for codec in self.codecs]

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        return self.at(round).encode(delta, state, round)

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        if round is not None:
            return self.at(round).decode(payload, like, round)
        failures: list[str] = []
        for codec in self.codecs:
            try:
                return codec.decode(payload, like)
            except PayloadError as error:
                failures.append(str(error))
        raise PayloadError(failures[0])

    def check(self) -> None:
        fix = "Int8(), Int4(), TwoBit()"
        require(len(self.codecs) >= 1, "codec.codecs", self.codecs, "one codec or more", fix)
        for codec in self.codecs:
            codec.check()
        same = {(c.exchange, c.granule, c.only_sums) for c in self.codecs}
        legal = "codecs of one exchange, one block size and one kind of sum"
        require(len(same) == 1, "codec.codecs", self.codecs, legal, fix)
