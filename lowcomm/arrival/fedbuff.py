"""FedBuff: a version after every Z contributions, whoever they are from.

Nguyen et al., arXiv 2106.06639; unbiased weights: Fraboni et al., A General Theory for Federated Optimization with
Asynchronous and Heterogeneous Clients Updates, arXiv 2206.10189 (stochastic weights). With Z = `size`, `tau` the
staleness, T_k the moving mean of an island's round time and K the number of islands:

    w <- outer(w, (1/Z) sum_{k in buffer} d_k s(tau_k) Delta_k),    s(tau) = 1/sqrt(1 + tau) ("polynomial") or 1
    "identical": d_k = 1;    "unbiased": d_k = (1/K) T_k sum_j 1/T_j: who comes rarely counts for more

Z = 1 is asynchronous FedAvg. Costs nothing on the wire. Until each T is known, d_k = 1.
Deviations: tokens do not count (islands take H steps each).
Reduces to: equal speeds, "unbiased": "identical"; Z islands of equal speed: FedAvg with uniform weights.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowcomm.arrival.base import (
    ArrivalRule,
    Damping,
    Moment,
    Waiting,
    check_damping,
    check_size,
    check_weights,
    damping,
)


@dataclass(frozen=True, kw_only=True)
class FedBuff(ArrivalRule):
    """Every `size` contributions make a version."""

    size: int = 4
    """Z: contributions per outer step, 1 to 4096."""
    staleness: Damping = "polynomial"
    """What a contribution of staleness tau counts: 1/sqrt(1 + tau), or 1."""
    weights: Literal["identical", "unbiased"] = "identical"
    """Whether islands that come rarely count for more, so that each counts alike in the long run."""

    def due(self, now: Moment) -> bool:
        return len(now.here) >= self.size

    def weight(self, one: Waiting, now: Moment) -> float:
        d = damping(self.staleness, one.staleness)
        return d if self.weights == "identical" else d * rarity(one.author, now)

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1 / self.size

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        check_size(name, self.size)
        check_damping(name, self.staleness)
        check_weights(name, self.weights)


def rarity(author: str, now: Moment) -> float:
    """(1/K) T_k sum_j 1/T_j; 1 until the round times of all members are known."""
    times = {k: now.pace(k).round_s for k in sorted(now.members)}
    if author not in times or not all(times.values()):
        return 1.0
    return times[author] * sum(1 / t for t in times.values()) / len(times)
