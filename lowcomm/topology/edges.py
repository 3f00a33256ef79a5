"""A graph of one's own: its edges, and its weights if they are to be others than Metropolis'.

    N(k) = {j : {j, k} is one of `pairs`};   W = `weights`, else Metropolis'

As many messages per island and round as it has edges.
Raises: ConfigError for islands that there are not, a graph that is not connected, and weights that are not those of
these edges or whose rows or columns do not sum to 1 (`graph.check_graph`).
Reduces to: `Ring` for the edges of a ring.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.topology.base import Topology
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Edges(Topology):
    """What somebody knows of the links between these islands."""

    pairs: tuple[tuple[int, int], ...]
    """Islands that exchange in every round, numbers from 0; the order does not matter."""
    links: tuple[float, ...] | None = None
    """Weight of each pair, more than 0; what is left to 1 is an island's own. None: Metropolis weights."""

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        return tuple(sorted({b if a == island else a for a, b in self.pairs if island in (a, b)}))

    def weights(self, round_index: int, islands: int, seed: int) -> list[list[float]]:
        if self.links is None:
            return super().weights(round_index, islands, seed)
        rows = [[0.0] * islands for _ in range(islands)]
        for (a, b), weight in zip(self.pairs, self.links, strict=True):
            rows[a][b] = rows[b][a] = weight
        for k, row in enumerate(rows):
            row[k] = 1.0 - sum(row)
        return rows

    def check(self, islands: int) -> None:
        name = "sync.exchange.topology"
        wrong = next((p for p in self.pairs if p[0] == p[1] or not all(0 <= k < islands for k in p)), None)
        legal = f"two islands each, from 0 to {islands - 1}"
        require(wrong is None, f"{name}.pairs", wrong, legal, "correct the pair, or pass more --islands")
        twice = len({frozenset(p) for p in self.pairs}) == len(self.pairs)
        require(twice, f"{name}.pairs", self.pairs, "each pair once", "leave the second one out")
        if self.links is not None:
            given = len(self.links)
            require(
                given == len(self.pairs), f"{name}.links", given, f"{len(self.pairs)}, one per pair", "give as many"
            )
            ok = all(0 < w <= 1 for w in self.links)
            require(ok, f"{name}.links", self.links, "more than 0, at most 1 each", "leave them out")
