"""Momentum and nearest neighbours: each island's Deltas are smoothed over rounds, then those nearest to a pivot count.

Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust collaborative learning, ICML 2023, arXiv 2210.17174.

    m_k <- beta m_k + (1 - beta) D_k,    D = mean of the K - f vectors m_k nearest to v

beta: `beta`; f: `faulty`; v: geometric median of the m_k (`geometric_median.py`); ties by island number. Over rounds an
honest island's noise averages out and an attack does not: what hides within one round's spread is far from it in m_k.
Shapes and dtypes: as in `gram.py`, and one fp32 Delta of state per island, equal on all.
Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 2 f + 1 islands or beta out of range; SyncError for a round with too few.
Deviates: the paper's islands have models of their own, each with itself as its pivot, and smooth gradients; here they
share one, and m_k starts at the island's first D_k, not at 0. Whoever receives keeps m_k, so it can't be made up.
Reduces to: the mean for f = 0 and beta = 0, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context, State
from lowcomm.aggregate.geometric_median import GeometricMedian
from lowcomm.aggregate.gram import GramRule, by_table, distances_from
from lowcomm.aggregate.robust import check_faulty, check_majority
from lowcomm.types import Contribution, Delta, require


@dataclass(frozen=True, kw_only=True)
class MoNNA(GramRule):
    """The mean of the K - f nearest momenta."""

    faulty: int = 1
    """f: islands that may send anything."""
    beta: float = 0.9
    """Share of the old momentum in the new one; 0 smooths nothing."""

    @property
    def fewest(self) -> int:
        return 2 * self.faulty + 1

    @property
    def withstands(self) -> int:
        return self.faulty

    @property
    def on_factors(self) -> bool:
        return False  # a momentum of factors is none of dW

    def check(self) -> None:
        super().check()
        check_faulty(self.faulty)
        require(0 <= self.beta < 1, "sync.aggregator.beta", self.beta, "0 <= beta < 1", "0.9 is usual")

    def check_islands(self, islands: int) -> None:
        check_majority("MoNNA", self.faulty, islands)

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        far = distances_from(gram.tolist(), GeometricMedian().coefficients(gram, weights))
        order = sorted(range(len(weights)), key=lambda i: (far[i], i))
        near = set(order[: max(1, len(weights) - self.faulty)])
        if len(near) == len(weights):
            return list(weights)
        total = math.fsum(weights[i] for i in near)
        return [weights[i] / total if i in near else 0.0 for i in range(len(weights))]

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        smooth = [replace(c, delta=self._momentum(c, context.state)) for c in contributions]
        made = by_table(self, type(self).__name__, self.coefficients, smooth, context)
        new = {f"{c.island}/{name}": t for c in smooth for name, t in c.delta.items()}
        return replace(made, state={**context.state, **new} if self.beta else {})

    def _momentum(self, one: Contribution, state: State) -> Delta:
        if not self.beta or f"{one.island}/{next(iter(one.delta))}" not in state:
            return one.delta
        old = {name: state[f"{one.island}/{name}"].to(t.device) for name, t in one.delta.items()}
        return {name: old[name] * self.beta + t * (1 - self.beta) for name, t in one.delta.items()}
