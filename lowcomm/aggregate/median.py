"""The coordinate-wise median.

Yin, Chen, Ramchandran, Bartlett, Byzantine-robust distributed learning, ICML 2018, arXiv 1803.01498.

    D[x] = med(D_1[x], ..., D_K[x]),    of an even K the mean of the middle two

Shapes and dtypes: those of the contributions, fp32. Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 3 islands; SyncError for a round with fewer contributions.
Deviates: pseudo-gradients of H steps take the place of gradients; islands weigh the same. Where honest islands differ
much in a coordinate, the median is far from their mean: a bias that needs no attack.
Reduces to: the mean for K <= 2 and for equal Deltas.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowcomm.aggregate.coordinates import CoordinateRule, mean_in_order


@dataclass(frozen=True, kw_only=True)
class Median(CoordinateRule):
    """The middle value of each coordinate."""

    @property
    def withstands(self) -> int:
        return (self.fewest - 1) // 2

    def reduce(self, ordered: Tensor) -> Tensor:
        count = len(ordered)
        return mean_in_order(ordered[(count - 1) // 2 : count // 2 + 1])
