"""Dynamic backup workers (DBW): each version waits for as many islands as gain most per second.

Xu, Neglia, Sebastianelli, Dynamic Backup Workers for Parallel Machine Learning, arXiv 2004.14696 (2021).
Of K islands a version takes the first n, and those that come later enter the next one:

    n = argmax_n gain(n) / T(n),    gain(n) = (1 - c/2) S - (c/2) V/n
    V = mean_k ||Delta_k||^2 - ||D||^2,    S = ||D||^2 - V/m, 0 or more

D: the mean of the last version's m Deltas; c: smoothness times the outer rate (`curvature`); T(n): the n-th shortest of
the islands' round times. Where no n gains anything, or a time is not known yet, n = K: noise calls for more Deltas.
Where islands differ much in speed and little in what they learn, few are waited for; towards the end of a run, when
noise outweighs what is left to learn, all. Costs nothing on the wire; one inner product of D with itself per version.
Deviations: c is given, as contributions carry no loss to take it from; T(n) from moving means of round times, not from
times of the n-th arrival; a late Delta is kept, with weight 1, and not thrown away. Not over a store: a committer that
has just joined knows no D.
Reduces to: `least` = 1: the synchronous run, with equal weights; so do equal speeds.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowcomm.arrival.base import ArrivalRule, Moment, Waiting
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class BackupWorkers(ArrivalRule):
    """A version of the first n islands, n anew each time."""

    least: float = 0.5
    """Share of the islands that a version has at least, above 0, at most 1."""
    curvature: float = 1.0
    """c: smoothness of the loss times the outer rate, 0 to 2 (where a step along the Delta gains nothing)."""

    needs_square: ClassVar[bool] = True

    def due(self, now: Moment) -> bool:
        return len({one.author for one in now.here}) >= min(self.wanted(now), len(now.members) or 1)

    def weight(self, one: Waiting, now: Moment) -> float:
        return 1.0

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1 / total

    def wanted(self, now: Moment) -> int:
        """n: islands that the next version waits for."""
        count = len(now.members)
        times = sorted(now.pace(author).round_s for author in now.members)
        last = [norms[-1] ** 2 for author, norms in now.norms.items() if norms and author in now.members]
        if count < 2 or not times[0] or not last or not now.mean_square:
            return count
        spread = max(0.0, math.fsum(last) / len(last) - now.mean_square)
        signal = max(0.0, now.mean_square - spread / max(1, now.mean_of))

        def rate(n: int) -> float:
            return ((1 - self.curvature / 2) * signal - self.curvature / 2 * spread / n) / times[n - 1]

        least = max(1, math.ceil(self.least * count))
        best = max(range(least, count + 1), key=lambda n: (rate(n), n))
        return best if rate(best) > 0 else count

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        require(0 < self.least <= 1, f"{name}.least", self.least, "above 0, at most 1", "0.5 is usual")
        ok = 0 <= self.curvature <= 2
        require(ok, f"{name}.curvature", self.curvature, "0 to 2", "1 is usual")
