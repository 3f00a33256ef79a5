"""Decoupled DiLoCo: a version when a quorum is there and waiting on for the others would cost somebody compute.

Decoupled DiLoCo, arXiv 2604.21428. Each learner advances on its own clock; for each fragment, with c_tokens and c_steps
of learner m since its last merge:

    D = sum_m weight_m (Theta at its start - theta_m) / sum_m weight_m,    weight_m = c_tokens (c_tokens / c_steps)

The version is made once `quorum` of the members have contributed and the grace window is over. The window costs nobody
compute: it ends when the first of those who contributed comes to its next fragment, a share `slack` of its round later
(1/P for P fragments), as it trains on until then. Who comes later enters the next version.
Costs nothing on the wire but a mark of 88 B per version in an ordered log.
Deviations: read from the paper's summary; the outer step (Nesterov there) is the run's.
Reduces to: `quorum` 1 and equal work: the synchronous run (streaming, over several fragments) with equal weights.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowcomm.arrival.base import ArrivalRule, Moment, Waiting
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Decoupled(ArrivalRule):
    """A version when a quorum is there and its grace window is over."""

    quorum: float = 0.5
    """Share of the members that must have contributed, above 0, at most 1."""
    slack: float = 0.5
    """Share of a round, 0 to 1, after which a contributor comes to its next fragment, at most: 1 / fragments."""

    by_clock: ClassVar[bool] = True

    def due(self, now: Moment) -> bool:
        authors = {one.author for one in now.here}
        if len(authors) < self.quorum * len(now.members | authors):
            return False
        over = any(one.waited_s >= self.slack * now.pace(one.author).round_s for one in now.here)
        return over or not now.missing

    def weight(self, one: Waiting, now: Moment) -> float:
        return one.tokens * one.tokens / max(1, one.steps)

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1 / total

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        require(0 < self.quorum <= 1, f"{name}.quorum", self.quorum, "above 0, at most 1", "0.5 is usual")
        require(0 <= self.slack <= 1, f"{name}.slack", self.slack, "0 to 1", "1 / fragments")
