"""SMEA: the mean of the K - f Deltas that vary least in any direction.

Allouah, Guerraoui, Gupta, Pinot, Stephan, On the privacy-robustness-utility trilemma in distributed learning, ICML
2023, arXiv 2302.04787.

    S* = argmin over |S| = K - f of lambda_max(Cov(D_i, i in S)),    D = sum_{S*} p_i D_i / sum_{S*} p_i

Cov's largest eigenvalue is that of the centred Gram table of S, over |S|; f: `faulty`; ties by the first set in the
order of islands. With noise on every inner step (`ExampleGaussian`) it is the paper's robust and private mean: the
accountant is that of the noise alone, as a choice after the noise costs nothing.
Shapes and dtypes: as in `gram.py`. Bytes: (K - 1) payloads each way per island and round.
Cost: one table of eigenvalues for each of the C(K, f) sets. Raises: ConfigError for fewer than 2 f + 1 islands or more
than `MOST_SETS` sets; SyncError for a round with too few.
Deviates: Deltas of H noisy steps stand for the paper's momenta of noisy gradients (`MoNNA` has momenta).
Reduces to: the mean for f = 0, bit for bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.aggregate.gram import GramRule
from lowcomm.aggregate.robust import check_faulty, check_majority
from lowcomm.types import require

MOST_SETS = 200_000


@dataclass(frozen=True, kw_only=True)
class SMEA(GramRule):
    """The mean of the set of smallest spread."""

    faulty: int = 1
    """f: islands that may send anything."""

    @property
    def fewest(self) -> int:
        return 2 * self.faulty + 1

    @property
    def withstands(self) -> int:
        return self.faulty

    def check(self) -> None:
        super().check()
        check_faulty(self.faulty)

    def check_islands(self, islands: int) -> None:
        check_majority("SMEA", self.faulty, islands)
        sets = math.comb(islands, self.faulty)
        legal = f"a number whose sets of islands, here {sets}, are at most {MOST_SETS}"
        require(sets <= MOST_SETS, "sync.aggregator.faulty", self.faulty, legal, "use NNM() | TrimmedMean()")

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        count = len(weights)
        kept = max(1, count - self.faulty)
        if kept == count:
            return list(weights)
        chosen = set(min(_spreads(gram, kept), key=lambda found: found[0])[1])
        total = math.fsum(weights[i] for i in chosen)
        return [weights[i] / total if i in chosen else 0.0 for i in range(count)]


def _spreads(gram: Tensor, kept: int) -> list[tuple[float, tuple[int, ...]]]:
    """Largest eigenvalue of each set's covariance, without the digits in which machines differ."""
    sets = list(itertools.combinations(range(len(gram)), kept))
    found: list[tuple[float, tuple[int, ...]]] = []
    for start in range(0, len(sets), 4096):
        part = sets[start : start + 4096]
        rows = torch.tensor(part)
        tables = gram[rows[:, :, None], rows[:, None, :]]
        means = tables.mean(dim=2, keepdim=True)
        centred = tables - means - means.transpose(1, 2) + tables.mean(dim=(1, 2), keepdim=True)
        largest = torch.linalg.eigvalsh(centred)[:, -1] / kept
        found += [(float(f"{x:.8e}"), s) for x, s in zip(largest.tolist(), part, strict=True)]
    return found
