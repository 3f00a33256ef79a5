"""The coordinate-wise trimmed mean.

Yin, Chen, Ramchandran, Bartlett, Byzantine-robust distributed learning, ICML 2018, arXiv 1803.01498.

    D[x] = mean of D_1[x], ..., D_K[x] without the f smallest and the f largest

f: `faulty`. Shapes and dtypes: those of the contributions, fp32. Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 2 f + 1 islands; SyncError for a round with fewer contributions.
Deviates: pseudo-gradients of H steps take the place of gradients; islands weigh the same.
Reduces to: the mean for f = 0, bit for bit; the median for K = 2 f + 1 or 2 f + 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.coordinates import CoordinateRule, mean_in_order
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.robust import check_faulty, check_majority
from lowcomm.types import Contribution


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(CoordinateRule):
    """The mean of each coordinate without its extremes."""

    faulty: int = 1
    """f: islands that may send anything."""

    @property
    def fewest(self) -> int:
        return 2 * self.faulty + 1

    @property
    def withstands(self) -> int:
        return self.faulty

    def check(self) -> None:
        check_faulty(self.faulty)

    def check_islands(self, islands: int) -> None:
        check_majority("TrimmedMean", self.faulty, islands)

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        if self.faulty == 0:
            return Aggregate(delta=Mean()(contributions))
        return super().combine(contributions, context)

    def reduce(self, ordered: Tensor) -> Tensor:
        if len(ordered) < self.fewest:
            raise ValueError(
                f"TrimmedMean(faulty={self.faulty}) needs {self.fewest} contributions, there are {len(ordered)}"
            )
        return mean_in_order(ordered[self.faulty : len(ordered) - self.faulty])
