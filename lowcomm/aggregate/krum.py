"""Krum and multi-Krum: only the Deltas that lie closest to most others count.

Blanchard, El Mhamdi, Guerraoui, Stainer, Krum, NeurIPS 2017, arXiv 1703.02757.

    score(i) = sum of ||D_i - D_j||^2 over the K - f - 2 islands j != i that are closest to i
    D = sum_{i in S} p_i D_i / sum_{i in S} p_i,    S: the m islands of lowest score, ties by island number

f: `faulty`; m: `best`, 1 is Krum; K: contributions of the round; p_i: equal by default, as an island says its tokens
itself. A Delta that is left out is lost: error feedback carries over what a codec cut, not what a rule refused.
Shapes and dtypes: as in `gram.py`. Bytes: (K - 1) payloads each way per island and round.
Raises: ConfigError for fewer than 2 f + 3 islands or m > K - f; SyncError for a round with fewer contributions, which
commits nothing: start more than 2 f + 3, or one island that sends nothing usable stops the run. If fewer than m + f
contribute, all but f are averaged.
Deviates: pseudo-gradients of H steps take the place of gradients; the paper proves m = 1, and for the rest nothing
bounds the mean of m > K - 2 f, which may hold a faulty one. Islands whose text differs much look faulty.
Reduces to: the mean for f = 0 and m = K, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowcomm.aggregate.gram import GramRule
from lowcomm.aggregate.robust import check_faulty
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Krum(GramRule):
    """Mean of the `best` Deltas whose neighbours are closest."""

    faulty: int = 1
    """f: islands that may send anything."""
    best: int = 1
    """m: islands that are averaged."""

    @property
    def fewest(self) -> int:
        return 2 * self.faulty + 3

    @property
    def withstands(self) -> int:
        return self.faulty

    def check(self) -> None:
        super().check()
        check_faulty(self.faulty)
        whole = isinstance(self.best, int) and self.best >= 1
        require(whole, "sync.aggregator.best", self.best, "a whole number, 1 or more", "1 is Krum")

    def check_islands(self, islands: int) -> None:
        most = (islands - 3) // 2
        lower = f"{most} or less" if most > 0 else "0"
        fix = f"set it to {lower}, or start {self.fewest} islands" if most >= 0 else "start 3 islands or more"
        legal = f"Krum needs 2 faulty + 3 = {self.fewest} islands, there are {islands}"
        require(islands >= self.fewest, "sync.aggregator.faulty", self.faulty, legal, fix)
        top = islands - self.faulty
        require(self.best <= top, "sync.aggregator.best", self.best, f"1 to islands - faulty = {top}", "lower it")

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        table: list[list[float]] = gram.tolist()
        count = len(table)
        if count < self.fewest:
            raise ValueError(f"Krum(faulty={self.faulty}) needs {self.fewest} contributions, there are {count}")
        scores = [_score(table, i, count - self.faulty - 2) for i in range(count)]
        order = sorted(range(count), key=lambda i: (scores[i], i))
        chosen = set(order[: min(self.best, count - self.faulty)])
        if len(chosen) == count:
            return list(weights)
        total = math.fsum(weights[i] for i in chosen)
        return [weights[i] / total if i in chosen else 0.0 for i in range(count)]


def _score(gram: Sequence[Sequence[float]], i: int, neighbours: int) -> float:
    """Sum of the smallest squared distances of contribution i to others; rounding may make a distance negative."""
    distances = (max(0.0, gram[i][i] + row[j] - 2 * row[i]) for j, row in enumerate(gram) if j != i)
    return math.fsum(sorted(distances)[:neighbours])
