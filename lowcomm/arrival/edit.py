"""A-EDiT: contributions whose norm is out of the ordinary are left out, the others weigh by a softmax of it.

EDiT: A Local-SGD-Based Efficient Distributed Training Method for Large Language Models, arXiv 2412.07210. With n_k the
L2 norm of a contribution, mu_k and sigma_k mean and standard deviation of its author's norms before it:

    left out: z_k = (n_k - mu_k) / sigma_k > z_most, once `warm_up` of the author's norms are known
    D = sum_k p_k Delta_k,    p_k = exp(-n_k) / sum_j exp(-n_j) over the others

A version is made of every `size` contributions; none of which all are left out. Costs nothing on the wire.
Deviations: norms of the author's last 16 contributions take the place of a moving mean (0.02, 100 rounds of warm-up),
and of whole Deltas, not layer by layer; the mean is not clipped (the aggregator `NormBound` clips contributions).
Reduces to: equal norms: the plain mean.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.arrival.base import NORMS, ArrivalRule, Moment, Waiting, check_size
from lowcomm.types import require

MOST_EXPONENT = 30.0
"""Of a weight: e^30 fits fp32 with room."""


@dataclass(frozen=True, kw_only=True)
class AEdit(ArrivalRule):
    """Every `size` contributions make a version, weighed by a softmax of minus their norms."""

    size: int = 4
    """Contributions per outer step, 1 to 4096."""
    z_most: float = 3.0
    """Standard deviations above an island's own mean norm from which on it is left out, above 0."""
    warm_up: int = 4
    """Contributions of an island before any of it is left out, 2 to 16."""

    def due(self, now: Moment) -> bool:
        return len(now.here) >= self.size

    def weight(self, one: Waiting, now: Moment) -> float:
        own = now.norms.get(one.author, ())
        if len(own) >= self.warm_up:
            z = (one.norm - statistics.fmean(own)) / max(statistics.pstdev(own), 1e-3 * statistics.fmean(own), 1e-30)
            if z > self.z_most:
                return 0.0
        # around the norms of the last version, so that large norms do not all weigh nothing: a softmax is the same
        return math.exp(max(-MOST_EXPONENT, min(MOST_EXPONENT, now.usual_norm - one.norm)))

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1 / total

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        check_size(name, self.size)
        ok = 0 < self.z_most < math.inf
        require(ok, f"{name}.z_most", self.z_most, "a finite number above 0", "3 is the paper's")
        require(2 <= self.warm_up <= NORMS, f"{name}.warm_up", self.warm_up, f"2 to {NORMS}", "4 is usual")
