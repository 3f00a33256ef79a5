"""The geometric median: the point whose distances to all Deltas have the smallest sum.

Pillutla, Kakade, Harchaoui, Robust aggregation for federated learning (RFA), arXiv 1912.13445.

    D = argmin_v sum_i p_i ||D_i - v||;    smoothed Weiszfeld:  c_i ~ p_i / max(||D_i - v||, nu),  v <- sum_i c_i D_i

p_i: weights; nu: `SMOOTHING`; `iterations` times. v stays a combination of the Deltas, so that all is done on G.
Shapes and dtypes: as in `gram.py`. Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 3 islands or iterations out of range; SyncError for a round with too few.
Deviates: starts at the mean of Deltas cut to the median norm, as from the plain mean a Delta of any size would take
any number of iterations to lose its pull. Less than half of the weight may be faulty.
Reduces to: the mean for equal distances, as with no iteration and equal norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.aggregate.gram import GramRule, distances_from, norm_factors
from lowcomm.types import require

SMOOTHING = 1e-6
"""nu: distances below count as this, so that a Delta at v does not have all of the weight."""


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(GramRule):
    """A mean in which far Deltas weigh little."""

    iterations: int = 8
    """Weiszfeld steps, 0 or more."""

    picks: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        ok = 0 <= self.iterations <= 1000
        require(ok, "sync.aggregator.iterations", self.iterations, "0 to 1000", "8 is usual")

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        table: list[list[float]] = gram.tolist()
        factors = norm_factors(table, len(weights))
        point = [p * s for p, s in zip(weights, factors, strict=True)]
        for _ in range(self.iterations):
            far = [max(d, SMOOTHING) for d in distances_from(table, point)]
            raw = [p / d for p, d in zip(weights, far, strict=True)]
            total = math.fsum(raw)
            point = [r / total for r in raw]
        return point
