"""A random perfect matching per round: each island exchanges with one other.

Boyd et al., Randomized gossip algorithms (2006); NoLoCo's pairs, arXiv 2506.10911.

    order = the islands sorted by hash(seed, round, island);  N(order[2i]) = {order[2i + 1]} and the other way round

One message per island and round, whatever n; with an odd number of islands one rests. A round leaves (n - 2) / (2n - 2)
of the squared distance to the islands' mean, on average over pairings, for even n.
Reduces to: the mean of both for n = 2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from lowcomm.topology.base import Topology


@dataclass(frozen=True, kw_only=True)
class RandomPairs(Topology):
    """One other island, drawn anew for each round."""

    varies: ClassVar[bool] = True

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        partner = _partners(round_index, islands, seed)[island]
        return () if partner is None else (partner,)


@lru_cache(maxsize=8)
def _partners(round_index: int, islands: int, seed: int) -> list[int | None]:
    """By island."""
    texts = [f"lowcomm pairs {seed} {round_index} {k}".encode() for k in range(islands)]
    tickets = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
    order = sorted(range(islands), key=lambda k: (tickets[k], k))
    partners: list[int | None] = [None] * islands
    for place, island in enumerate(order):
        other = place ^ 1
        partners[island] = order[other] if other < islands else None
    return partners
