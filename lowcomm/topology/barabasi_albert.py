"""A scale-free graph: islands arrive one by one and prefer those that have many neighbours already.

Barabasi and Albert, Emergence of scaling in random networks (1999).

    begin with m + 1 islands, all with all;  each later one joins m others, j with a chance of d_j / sum_i d_i

2 m messages per island and round on average (`attach` is m), a few hubs have many more: the peak is theirs. What a
network of volunteers looks like that nobody planned; what it does when a hub is lost is a matter of `churn`.
Raises: ConfigError for m out of range.
Reduces to: `Complete` for m = n - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lowcomm.topology.base import Topology
from lowcomm.topology.drawing import below, generator
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class BarabasiAlbert(Topology):
    """Hubs and their followers, drawn from the run's seed."""

    attach: int = 2
    """m: islands that each newcomer joins, 1 to islands - 1."""

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        return _grown(self.attach, islands, seed)[island] if islands > 1 else ()

    def check(self, islands: int) -> None:
        m = self.attach
        ok = 1 <= m < max(2, islands)
        legal = f"1 to {max(1, islands - 1)}, one less than the islands"
        require(ok, "sync.exchange.topology.attach", m, legal, "a smaller number, or more --islands")


@lru_cache(maxsize=8)
def _grown(attach: int, islands: int, seed: int) -> list[tuple[int, ...]]:
    draws = generator("barabasi albert", attach, islands, seed)
    first = min(attach + 1, islands)
    near = [{j for j in range(first) if j != k} if k < first else set[int]() for k in range(islands)]
    ends = [k for k in range(first) for _ in near[k]]
    """Every island as often as it has neighbours."""
    for k in range(first, islands):
        while len(near[k]) < attach:
            near[k].add(ends[below(draws, len(ends))])
        for j in sorted(near[k]):
            near[j].add(k)
            ends += [j, k]
    return [tuple(sorted(mine)) for mine in near]
