"""Anarchic FL, across silos (AFA-CS): every version counts the latest contribution of every island, new or not.

Yang et al., Anarchic Federated Learning, arXiv 2108.09875. After m = `size` arrivals, with K islands, H_k the inner
steps of a contribution and Hbar = `nominal_steps`:

    w <- outer(w, (Hbar/K) sum_{k = 1..K} u_k),    u_k = Delta_k / H_k of the latest contribution of island k

Islands that come rarely do not fade: what they sent last counts until they send again. Costs nothing on the wire; every
island keeps the latest Delta of every other, K times the model in fp32.
Deviations: the rate is the outer optimizer's; Deltas are kept decoded. Not over a store: no snapshot holds them.
Reduces to: m = K, equal speeds, H_k = Hbar: FedAvg with uniform weights.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowcomm.arrival.base import ArrivalRule, Moment, Waiting, check_size
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class AnarchicSilos(ArrivalRule):
    """Every `size` contributions make a version, of the latest one of each island."""

    size: int = 2
    """m: new contributions per outer step, 1 to 4096."""
    nominal_steps: int = 32
    """Hbar: inner steps of a contribution that counts 1 / K, 1 or more; `sync.every` is usual."""

    keeps_latest: ClassVar[bool] = True

    def due(self, now: Moment) -> bool:
        return len(now.here) >= self.size

    def weight(self, one: Waiting, now: Moment) -> float:
        return self.nominal_steps / (max(1, one.steps) * len(now.members | {one.author}))

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1.0

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        check_size(name, self.size)
        require(self.nominal_steps >= 1, f"{name}.nominal_steps", self.nominal_steps, "1 or more", "sync.every")
