"""Centred clipping: Deltas count as far as they lie from the last round's update, and no farther.

Karimireddy, He, Jaggi, Learning from history for Byzantine robust optimization, ICML 2021, arXiv 2012.10333.

    v <- v + sum_i p_i (D_i - v) min(1, tau / ||D_i - v||),    D = v after `iterations` of it

v starts at the D of the last committed round (state, in the checkpoint), in the first round at 0; p_i: weights; tau:
`radius`, or the median distance from v in each iteration. v stays a combination of the Deltas and its start, so that
all is done on G, whose last row is the start.
Shapes and dtypes: as in `gram.py`, and one fp32 Delta of state. Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 3 islands or settings out of range; SyncError for a round with too few.
Deviates: the paper's islands send momentum, here Deltas of H steps; the median distance spares a guess of tau.
Reduces to: the mean for tau = infinity, whatever v was, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.aggregate.gram import GramRule, distances_from
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class CentredClipping(GramRule):
    """The mean of Deltas clipped around the last update."""

    radius: float | None = None
    """tau: distance from v at which a Delta is clipped (L2, as the Deltas); None: the median distance."""
    iterations: int = 3
    """Times that v moves, 1 or more."""

    remembers: ClassVar[bool] = True
    picks: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        ok = self.radius is None or self.radius > 0
        require(ok, "sync.aggregator.radius", self.radius, "above 0, or None for the median distance", "leave it out")
        ok = 1 <= self.iterations <= 1000
        require(ok, "sync.aggregator.iterations", self.iterations, "1 to 1000", "3 is usual")

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        table: list[list[float]] = gram.tolist()
        count = len(weights)
        point = [0.0] * count + [1.0]
        for _ in range(self.iterations):
            far = distances_from(table, point)[:count]
            tau = sorted(far)[(count - 1) // 2] if self.radius is None else self.radius
            if max(far) <= tau:
                point = [*weights, 0.0]
                continue
            steps = [p * (1.0 if d <= tau else tau / d) for p, d in zip(weights, far, strict=True)]
            rest = 1 - math.fsum(steps)
            point = [s + rest * v for s, v in zip([*steps, 0.0], point, strict=True)]
        return point
