"""SybilWall: islands that have always wanted the same are taken for one, however many names it has.

SybilWall, which has FoolsGold's weights among gossiping nodes (here: Fung, Yoon, Beschastnikh, The limitations of
federated learning in Sybil settings, RAID 2020, arXiv 1808.04866).

    h_k <- h_k + D_k;    cs_ij = cos(h_i, h_j), times m_i / m_j where m_i < m_j,    m_i = max_j cos(h_i, h_j)
    a_i = clip(1 - max_j cs_ij, 0, 1), over the largest of them;    a_i <- clip(ln(a_i / (1 - a_i)) + 1/2, 0, 1)
    D = sum_i p_i a_i D_i / sum_j p_j a_j

h: sums of each island's Deltas over committed rounds, this one included; state, in the checkpoint. Where all a are 0,
nothing tells islands apart, and they weigh alike.
Shapes and dtypes: as in `gram.py`, and one fp32 Delta of state per island, equal on all.
Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 3 islands; SyncError for a round with too few.
Deviates: islands gather all Deltas, so that no history has to be gossiped and none is of the wrong island; h is kept
whole, not projected. Islands with text of one kind look like Sybils: it is meant for text that differs.
Reduces to: the mean where all a are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.gram import GramRule
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.table import gram_table
from lowcomm.types import Contribution, Delta


@dataclass(frozen=True, kw_only=True)
class SybilWall(GramRule):
    """The mean weighted by how unlike others an island has been."""

    picks: ClassVar[bool] = False

    @property
    def on_factors(self) -> bool:
        return False  # a sum of factors is none of dW

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        a = _apart(gram.tolist())
        shares = [p * x for p, x in zip(weights, a, strict=True)]
        total = math.fsum(shares)
        return [s / total for s in shares] if total > 0 else list(weights)

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        sums = [_with_history(c, context.state) for c in contributions]
        table = context.sum_ranks(gram_table(sums))
        found = self.coefficients(table, [c.weight for c in contributions])
        taken = [replace(c, weight=w) for c, w in zip(contributions, found, strict=True) if w]
        new = {f"{c.island}/{name}": t for c, h in zip(contributions, sums, strict=True) for name, t in h.items()}
        shown = ", ".join(f"{c.island}: {w:.4g}" for c, w in zip(contributions, found, strict=True))
        return Aggregate(delta=Mean()(taken), notes=(f"SybilWall: weights {shown}",), state={**context.state, **new})


def _with_history(one: Contribution, state: Delta) -> Delta:
    """h of an island, this round's Delta in it."""
    if f"{one.island}/{next(iter(one.delta))}" not in state:
        return {name: t.clone() for name, t in one.delta.items()}
    return {name: state[f"{one.island}/{name}"].to(t.device) + t for name, t in one.delta.items()}


def _apart(table: Sequence[Sequence[float]]) -> list[float]:
    """a of each row."""
    count = range(len(table))
    norms = [math.sqrt(max(0.0, table[i][i])) for i in count]
    cosines = [[table[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] > 0 else 0.0 for j in count] for i in count]
    most = [max((cosines[i][j] for j in count if j != i), default=0.0) for i in count]
    raw: list[float] = []
    for i in count:
        pardoned = [cosines[i][j] * (most[i] / most[j] if 0 < most[i] < most[j] else 1.0) for j in count if j != i]
        raw.append(min(1.0, max(0.0, 1 - max(pardoned, default=0.0))))
    top = max(raw)
    if top <= 0:
        return [0.0] * len(table)
    return [_logit(min(0.99, r / top)) for r in raw]


def _logit(share: float) -> float:
    return 0.0 if share <= 0 else min(1.0, max(0.0, math.log(share / (1 - share)) + 0.5))
