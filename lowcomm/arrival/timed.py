"""FedFix: a version after every `every_s` seconds, of whatever has arrived.

Fraboni et al., A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates,
arXiv 2206.10189. With dt = `every_s`, T_k the moving mean of an island's round time, K islands, `tau` the staleness:

    w <- outer(w, sum_{k arrived} d_k s(tau_k) Delta_k),    s(tau) = 1/sqrt(1 + tau) ("polynomial") or 1
    "unbiased": d_k = (1/K) ceil(T_k/dt): who comes in every third version counts three times;   "identical": d_k = 1/K

dt from 0.2 to 0.8 of the slowest island's round is usual. Costs nothing on the wire but a mark of 88 B per version in
an ordered log, where the islands must agree on which contributions were in time.
Deviations: islands do not wait for the version, they train on; time is counted from the last version, so that one to
which nothing had come by then takes the first contribution that comes; p_k = 1/K, tokens do not count.
Reduces to: dt of at least the slowest round, equal speeds: FedAvg with uniform weights.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.arrival.base import ArrivalRule, Damping, Moment, Waiting, check_damping, check_weights, damping
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Timed(ArrivalRule):
    """A version every `every_s` seconds."""

    every_s: float = 60.0
    """dt: seconds between versions, above 0; of a simulation's virtual clock there."""
    weights: Literal["identical", "unbiased"] = "unbiased"
    """Whether islands that come rarely count for more, so that each counts alike in the long run."""
    staleness: Damping = "constant"
    """What a contribution of staleness tau counts: 1/sqrt(1 + tau), or 1."""

    by_clock: ClassVar[bool] = True

    def due(self, now: Moment) -> bool:
        return now.waited_s >= self.every_s

    def weight(self, one: Waiting, now: Moment) -> float:
        share = damping(self.staleness, one.staleness) / max(1, len(now.members))
        rounds = now.pace(one.author).round_s / self.every_s
        return share if self.weights == "identical" else share * max(1, math.ceil(rounds))

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1.0

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        ok = 0 < self.every_s < math.inf
        require(ok, f"{name}.every_s", self.every_s, "a positive number of seconds", "half of the slowest round")
        check_weights(name, self.weights)
        check_damping(name, self.staleness)
