"""Clients of unequal sizes with the same distribution of labels.

Li, Diao, Chen, He, arXiv 2102.02079 (quantity skew).

    q ~ Dir(alpha 1_n),    client k has the fraction q[k] of all rows, at random

Cost: none on the wire.
Raises: ConfigError out of range, and if 100 draws give some client fewer than `min_rows` rows.
Reduces to: Iid in distribution, for alpha to infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.data.partition.base import Partition, check_min_rows, check_positive, cut, drawn
from lowcomm.data.source import Document


@dataclass(frozen=True, kw_only=True)
class Quantity(Partition):
    """Quantity skew."""

    alpha: float = 0.5
    """Concentration: 0.1 gives one large client and many small ones, 100 almost equal ones."""
    min_rows: int = 2
    """Number of rows that every client gets at least."""

    def check(self, islands: int) -> None:
        check_positive("alpha", self.alpha, "0.1 to 1 are usual")
        check_min_rows(self.min_rows)

    def owners(self, documents: Sequence[Document], islands: int, rng: np.random.Generator) -> np.ndarray:
        def draw() -> np.ndarray:
            owners = np.empty(len(documents), dtype=np.int64)
            order = rng.permutation(len(documents))
            for island, part in enumerate(cut(order, rng.dirichlet([self.alpha] * islands))):
                owners[part] = island
            return owners

        return drawn(draw, islands, self.min_rows, self)
