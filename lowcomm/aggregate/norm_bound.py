"""The norm bound: no Delta counts for more than a usual one does.

Sun, Kairouz, Suresh, McMahan, Can you really backdoor federated learning?, arXiv 1911.07963.

    D = sum_i p_i D_i min(1, m / ||D_i||),    m: median norm of the contributions (the lower of the middle two)

p_i: weights, equal by default. Shapes and dtypes: as in `gram.py`.
Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 3 islands; SyncError for a round with fewer contributions.
Deviates: the bound of the paper is a constant. It judges norms as they arrive, `sync.norm_bound` those that are said;
it leaves nobody out, and never looks at the direction of a Delta.
Reduces to: the mean for equal norms, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.aggregate.gram import GramRule, norm_factors


@dataclass(frozen=True, kw_only=True)
class NormBound(GramRule):
    """The mean of Deltas cut to the median norm."""

    picks: ClassVar[bool] = False

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        factors = norm_factors(gram.tolist(), len(weights))
        return [p * s for p, s in zip(weights, factors, strict=True)]
