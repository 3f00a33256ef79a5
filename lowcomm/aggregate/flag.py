"""The flag aggregator: the subspace that most directions lie close to, and the mean of what they are inside it.

Mehta et al., Flag aggregator: scalable distributed training under failures and augmented losses, arXiv 2302.05865.

    g_i = D_i / ||D_i||;    Y [n, m] orthonormal minimises sum_i sqrt(1 - ||Y' g_i||^2)
    a_i = (1 - ||Y' g_i||^2 + 1e-7)^(-1/4),  Y = first m left singular vectors of [a_1 g_1 .. a_K g_K],  4 times
    d = sum_i p_i Y Y' g_i,    D = d * median_i ||D_i|| / ||d||

m: `dimensions`; p_i: weights. In Gram space, with C the cosines and diag(a) C diag(a) = U L U':
d = sum_i c_i g_i for c = diag(a) U_m L_m^-1 U_m' diag(a) C p. The median is the lower of the middle two.
Shapes and dtypes: as in `gram.py`. Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 3 islands or m out of range; SyncError for a round with too few.
Deviates: the norm is restored here, the paper leaves it to the rate; its term of pairs of Deltas is left out, as in its
plain form. A direction without a partner counts little where m is small, and any norm counts the same.
Reduces to: the mean of unit directions, of the median norm, for m = K; one island: the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.aggregate.gram import GramRule
from lowcomm.aggregate.jacobi import eigen
from lowcomm.types import require

ITERATIONS, SMOOTHING = 4, 1e-7
LEAST = 1e-12
"""Eigenvalues below this part of the largest are 0 but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Flag(GramRule):
    """The mean of directions inside the subspace that fits most of them."""

    dimensions: int | None = None
    """m: dimensions of the subspace, 1 or more; None: half of K + 1, rounded up."""

    picks: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        ok = self.dimensions is None or self.dimensions >= 1
        require(ok, "sync.aggregator.dimensions", self.dimensions, "1 or more, or None for half", "leave it out")

    def check_islands(self, islands: int) -> None:
        super().check_islands(islands)
        ok = self.dimensions is None or self.dimensions <= islands
        require(ok, "sync.aggregator.dimensions", self.dimensions, f"at most {islands}, the islands", "lower it")

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        table: list[list[float]] = gram.tolist()
        norms = [math.sqrt(max(0.0, row[i])) for i, row in enumerate(table)]
        here = [i for i, norm in enumerate(norms) if norm > 0]
        if not here:
            return list(weights)
        cosines = [[table[i][j] / (norms[i] * norms[j]) for j in here] for i in here]
        shares = [weights[i] for i in here]
        found = self._inside(cosines, shares)
        along = [math.fsum(c * f for c, f in zip(row, found, strict=True)) for row in cosines]
        size = math.sqrt(max(0.0, math.fsum(f * a for f, a in zip(found, along, strict=True))))
        usual = sorted(norms)[(len(norms) - 1) // 2]
        scale = usual / size if size > 0 else 0.0
        by = {i: f * scale / norms[i] for i, f in zip(here, found, strict=True)}
        return [by.get(i, 0.0) for i in range(len(norms))]

    def _inside(self, cosines: Sequence[Sequence[float]], shares: Sequence[float]) -> list[float]:
        """c: what each unit direction counts for d."""
        count = len(cosines)
        kept = min(count, self.dimensions or (count + 2) // 2)
        if kept == count:
            return list(shares)
        a = [1.0] * count
        for last in range(ITERATIONS):
            values, vectors = eigen([[a[i] * cosines[i][j] * a[j] for j in range(count)] for i in range(count)])
            used = [(v, x) for v, x in zip(values[:kept], vectors, strict=False) if v > LEAST * values[0]]
            if last == ITERATIONS - 1:
                return self._project(cosines, shares, a, used)
            fits = [0.0] * count
            for value, vector in used:
                weighted = [x * y for x, y in zip(vector, a, strict=True)]
                for i, row in enumerate(cosines):
                    fits[i] += math.fsum(w * c for w, c in zip(weighted, row, strict=True)) ** 2 / value
            a = [(max(0.0, 1 - f) + SMOOTHING) ** -0.25 for f in fits]
        raise AssertionError("the loop returns")

    def _project(
        self,
        cosines: Sequence[Sequence[float]],
        shares: Sequence[float],
        a: Sequence[float],
        used: Sequence[tuple[float, Sequence[float]]],
    ) -> list[float]:
        mean = [math.fsum(c * p for c, p in zip(row, shares, strict=True)) for row in cosines]
        found = [0.0] * len(a)
        for value, vector in used:
            along = math.fsum(x * y * m for x, y, m in zip(vector, a, mean, strict=True)) / value
            found = [f + x * y * along for f, x, y in zip(found, a, vector, strict=True)]
        return found
