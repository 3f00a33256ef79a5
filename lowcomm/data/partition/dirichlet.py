"""Labels in unequal proportions, drawn from a Dirichlet distribution.

Yurochkin et al., PFNM, arXiv 1905.12022 (per label, as here); Hsu, Qi, Brown, arXiv 1909.06335 (per client).

    p_label ~ Dir(alpha 1_n),    client k has the fraction p_label[k] of the rows of the label

alpha: `alpha`, small for unequal clients; n: islands. Sizes of clients are unequal, too.
Cost: none on the wire.
Raises: ConfigError out of range, and if 100 draws give some client fewer than `min_rows` rows.
Deviates: flwr-datasets' self-balancing is left out; draws are repeated as a whole.
Reduces to: Iid in distribution, for alpha to infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.data.partition.base import Partition, check_min_rows, check_positive, cut, drawn, groups_of
from lowcomm.data.source import Document


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Label skew."""

    alpha: float = 0.5
    """Concentration: 0.1 gives clients of almost one label, 100 almost equal ones."""
    min_rows: int = 2
    """Number of rows that every client gets at least."""

    def check(self, islands: int) -> None:
        check_positive("alpha", self.alpha, "0.1 to 1 are usual")
        check_min_rows(self.min_rows)

    def owners(self, documents: Sequence[Document], islands: int, rng: np.random.Generator) -> np.ndarray:
        groups = groups_of(documents)

        def draw() -> np.ndarray:
            owners = np.empty(len(documents), dtype=np.int64)
            for rows in groups.values():
                parts = cut(rng.permutation(rows), rng.dirichlet([self.alpha] * islands))
                for island, part in enumerate(parts):
                    owners[part] = island
            return owners

        return drawn(draw, islands, self.min_rows, self)
