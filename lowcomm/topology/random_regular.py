"""A random graph in which every island has equally many neighbours: an expander, drawn once per run.

Steger and Wormald, Generating random regular graphs quickly (1999), the pairing of stubs.

    n d stubs, d of each island; two that may be joined (other islands, no edge yet) are drawn and joined, until none is
    left; a draw that gets stuck, or a graph that is not connected, begins anew

d messages per island and round (`degree`). The gap does not fall with n: near 1 - (1 + 2 sqrt(d - 1)) / (d + 1).
Raises: ConfigError for a degree as large as the number of islands or more, below 2 (but for two islands), or with an
odd product n d.
Reduces to: `Complete` for d = n - 1, `Ring` in another order of the islands for d = 2.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from lowcomm.topology.base import Topology
from lowcomm.topology.drawing import below, generator
from lowcomm.topology.graph import components
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class RandomRegular(Topology):
    """`degree` neighbours of each island, drawn from the run's seed."""

    degree: int = 3
    """d: neighbours of each island, 2 to islands - 1; islands times degree is even."""

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        return _drawn(self.degree, islands, seed)[island] if islands > 1 else ()

    def check(self, islands: int) -> None:
        if islands == 1:
            return
        name, d = "sync.exchange.topology.degree", self.degree
        legal = f"{min(2, islands - 1)} to {islands - 1}, one less than the islands"
        require(min(2, islands - 1) <= d < islands, name, d, legal, "a smaller degree, or more --islands")
        require(islands * d % 2 == 0, name, d, f"even with {islands} islands", "one more or less")


@lru_cache(maxsize=8)
def _drawn(degree: int, islands: int, seed: int) -> list[tuple[int, ...]]:
    if degree == islands - 1:
        return [tuple(j for j in range(islands) if j != k) for k in range(islands)]
    draws = generator("regular", degree, islands, seed)
    while True:
        near = _attempt(draws, degree, islands)
        if near is not None and len(components(near)) == 1:
            return [tuple(sorted(mine)) for mine in near]


def _attempt(draws: random.Random, degree: int, islands: int) -> list[set[int]] | None:
    near = [set[int]() for _ in range(islands)]
    stubs = [k for k in range(islands) for _ in range(degree)]
    while stubs:
        for _ in range(50 * len(stubs)):
            a, b = below(draws, len(stubs)), below(draws, len(stubs))
            k, j = stubs[a], stubs[b]
            if k != j and j not in near[k]:
                break
        else:
            return None
        near[k].add(j)
        near[j].add(k)
        for place in sorted((a, b), reverse=True):
            stubs[place] = stubs[-1]
            stubs.pop()
    return near
