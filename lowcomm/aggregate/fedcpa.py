"""FedCPA: islands weigh by how much they agree on which parameters matter most, and which least.

Han, Park, Wu et al., Towards attack-tolerant federated learning via critical parameter analysis, ICCV 2023,
arXiv 2308.09318.

    c_k = |D_k (w - D_k)|,  c_w = |(w - w_last) w|;    T_k, L_k: entries of the largest and smallest `share` of c_k
    sim(i, j) = mean over X in {T, L} of  |X_i & X_j| / |X_i | X_j| + (pearson(c_i, c_j on X_i & X_j) + 1) / 2
    s_k = mean_j sim(k, j) + sim(k, w), scaled to 0.01 .. 0.99;    a_k = clip(ln(s_k / (1 - s_k)) + 1/2, 0, 1)
    D = mean over a_k > 0 of a_k D_k

w: the anchor, w_last: that of the last committed round (state, in the checkpoint; without one its term is left out).
Shapes and dtypes: Deltas fp32; matrices are looked at, each with its own T and L, other tensors are weighed with them.
Bytes: (K - 1) payloads each way per island and round. Cost: two order statistics per matrix and island.
Raises: ConfigError for fewer than 3 islands or a share out of range; SyncError for a round with too few.
Deviates: T and L of each matrix by itself, which shards and fragments can count; entries equal to the border are in.
Counts and sums are added over the ranks of an island. Scores are rounded to 1e-9, which machines agree on.
Reduces to: the mean where all sim are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.robust import RobustRule
from lowcomm.types import Contribution, Delta, require

COUNTS = 8
"""Numbers that are added up for a pair and a set: both, either, and sums of 1, x, y, xy, xx, yy over both."""


@dataclass(frozen=True, kw_only=True)
class FedCPA(RobustRule):
    """The mean weighted by agreement on critical parameters."""

    share: float = 0.01
    """Part of a matrix's entries that counts as most, and as least, important."""

    def check(self) -> None:
        ok = 0 < self.share <= 0.5
        require(ok, "sync.aggregator.share", self.share, "above 0, at most 0.5", "0.01 is usual")

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        if not contributions:
            raise ValueError("no contribution to aggregate")
        scores = self._scores([c.delta for c in contributions], context)
        kept = agreement(scores)
        taken = [k for k, a in enumerate(kept) if a > 0]
        weighed = [replace(contributions[k], weight=kept[k] / len(taken)) for k in taken]
        shown = ", ".join(f"{c.island}: {a:.4g}" for c, a in zip(contributions, kept, strict=True))
        state = {name: t.clone() for name, t in context.start.items()}
        return Aggregate(delta=Mean()(weighed), notes=(f"FedCPA: weights {shown}",), state=state)

    def _scores(self, deltas: Sequence[Delta], context: Context) -> list[float]:
        count = len(deltas)
        rows = count + bool(context.state)
        table = torch.zeros(rows, rows, 2, COUNTS, dtype=torch.float64)
        for name, start in context.start.items():
            if start.ndim < 2 or name not in deltas[0]:
                continue
            parts = [(d[name] * (start - d[name])).abs().reshape(-1) for d in deltas]
            if context.state:
                parts.append(((start - context.state[name].to(start.device)) * start).abs().reshape(-1))
            if start.numel():
                self._add(table, parts)
        table = context.sum_ranks(table)
        found: list[float] = []
        for k in range(count):
            others = [_similar(table[k, j]) for j in range(count) if j != k]
            score = math.fsum(others) / max(1, len(others))
            found.append(round(score + (_similar(table[k, count]) if rows > count else 0.0), 9))
        return found

    def _add(self, table: Tensor, parts: Sequence[Tensor]) -> None:
        """Count one matrix: [rows, rows, 2, COUNTS]."""
        many = max(1, round(self.share * parts[0].numel()))
        tops = [p >= p.kthvalue(p.numel() - many + 1).values for p in parts]
        lows = [p <= p.kthvalue(many).values for p in parts]
        for which, sets in enumerate((tops, lows)):
            for i in range(len(parts)):
                for j in range(i + 1, len(parts)):
                    both = sets[i] & sets[j]
                    x, y = parts[i][both].double(), parts[j][both].double()
                    sums = [float(s.sum()) for s in (x, y, x * y, x * x, y * y)]
                    counts = [float(both.sum()), float((sets[i] | sets[j]).sum()), float(both.sum()), *sums]
                    table[i, j, which] += torch.tensor(counts, dtype=torch.float64)
                    swapped = [*counts[:3], counts[4], counts[3], counts[5], counts[7], counts[6]]
                    table[j, i, which] += torch.tensor(swapped, dtype=torch.float64)


def agreement(scores: Sequence[float]) -> list[float]:
    """a of each island; all 1 where the scores are equal."""
    low, high = min(scores), max(scores)
    if high <= low:
        return [1.0] * len(scores)
    scaled = [min(0.99, max(0.01, (s - low) / (high - low))) for s in scores]
    return [min(1.0, max(0.0, math.log(s / (1 - s)) + 0.5)) for s in scaled]


def _similar(rows: Tensor) -> float:
    """sim of a pair: [2, COUNTS]."""
    total = 0.0
    for both, either, n, x, y, xy, xx, yy in rows.tolist():
        spread = math.sqrt(max(0.0, n * xx - x * x)) * math.sqrt(max(0.0, n * yy - y * y))
        pearson = min(1.0, max(-1.0, (n * xy - x * y) / spread)) if spread > 0 else 0.0
        total += (both / either if either else 0.0) + (pearson + 1) / 2
    return total / 2
