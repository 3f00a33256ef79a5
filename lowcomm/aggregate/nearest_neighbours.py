"""Nearest-neighbour mixing: each Delta is replaced by the mean of those that lie closest to it.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, Fixing by mixing, AISTATS 2023, arXiv 2302.01772.

    Y_i = sum_{j in N(i)} p_j D_j / sum_{j in N(i)} p_j,    N(i): the K - f Deltas closest to D_i, itself among them

f: `faulty`; p_j: weights; ties by island number. A rule for islands with equal text works after it also where texts
differ, as Y_i of honest islands lie closer together than their D_i do.
Shapes and dtypes: as in `mixing.py`. Bytes: none beside the rule's.
Raises: ConfigError for fewer than 2 f + 1 islands.
Deviates: pseudo-gradients of H steps take the place of gradients.
Reduces to: every Y_i is the mean for f = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.aggregate.mixing import Matrix, Mixing
from lowcomm.aggregate.robust import check_faulty, check_majority
from lowcomm.types import Round


@dataclass(frozen=True, kw_only=True)
class NNM(Mixing):
    """Means of the K - f nearest."""

    faulty: int = 1
    """f: islands that may send anything."""

    @property
    def fewest(self) -> int:
        return 2 * self.faulty + 1

    @property
    def withstands(self) -> int:
        return self.faulty

    def outputs(self, count: int) -> int:
        return count

    def check(self) -> None:
        check_faulty(self.faulty)

    def check_islands(self, islands: int) -> None:
        check_majority("NNM", self.faulty, islands)

    def matrix(self, gram: Matrix, weights: Sequence[float], round: Round) -> tuple[Matrix, list[float]]:
        return [self._row(gram, weights, i) for i in range(len(weights))], list(weights)

    def _row(self, gram: Matrix, weights: Sequence[float], i: int) -> list[float]:
        far = [max(0.0, gram[i][i] + row[j] - 2 * row[i]) for j, row in enumerate(gram)]
        order = sorted(range(len(weights)), key=lambda j: (j != i, far[j], j))
        near = sorted(order[: max(1, len(weights) - self.faulty)])
        total = math.fsum(weights[j] for j in near)
        return [weights[j] / total if j in near else 0.0 for j in range(len(weights))]
