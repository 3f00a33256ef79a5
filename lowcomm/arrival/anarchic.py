"""Anarchic FL, across devices (AFA-CD): islands contribute whenever they like, and each counts per inner step.

Yang et al., Anarchic Federated Learning, arXiv 2108.09875. After m = `size` arrivals, with H_k the inner steps of a
contribution and Hbar = `nominal_steps`:

    w <- outer(w, (Hbar/m) sum_k u_k),    u_k = Delta_k / H_k

An island that took more steps than the others does not count for more. Costs nothing on the wire.
Deviations: the rate is the outer optimizer's (0.5 to 1 in the paper).
Reduces to: H_k = Hbar: FedBuff with constant weights; m = K, equal speeds: FedAvg with uniform weights.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.arrival.base import ArrivalRule, Moment, Waiting, check_size
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Anarchic(ArrivalRule):
    """Every `size` contributions make a version, each weighed by one over its inner steps."""

    size: int = 4
    """m: contributions per outer step, 1 to 4096."""
    nominal_steps: int = 32
    """Hbar: inner steps of a contribution that counts 1, 1 or more; `sync.every` is usual."""

    def due(self, now: Moment) -> bool:
        return len(now.here) >= self.size

    def weight(self, one: Waiting, now: Moment) -> float:
        return self.nominal_steps / max(1, one.steps)

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1 / self.size

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        check_size(name, self.size)
        require(self.nominal_steps >= 1, f"{name}.nominal_steps", self.nominal_steps, "1 or more", "sync.every")
