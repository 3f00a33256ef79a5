"""A fixed number of clients per round, each set of that size as likely as any other.

McMahan et al., FedAvg, arXiv 1602.05629 (its fraction C of the clients).

    S_t = the `count` islands with the smallest tickets;  Delta = sum_{k in S_t} p_k Delta_k,  sum_{k in S_t} p_k = 1

No bytes, no state: tickets are hashes of (seed, round, island). An island that is not in S_t sends no contribution, but
takes part in roll calls (32 B) and in adding up; it takes the new global weights.
Raises: ConfigError for a count out of range.
Deviates: sampled without replacement from islands that are all there, not from a larger population.
Reduces to: no sampling for count = islands, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowcomm.sampling.base import Sampling, tickets
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class FixedSize(Sampling):
    """`count` of the islands in every round."""

    count: int = 1
    """Islands per round, 1 to all of them."""

    independent: ClassVar[bool] = False

    def senders(self, islands: int) -> int:
        return self.count

    def draw(self, islands: int, seed: int, round_index: int) -> frozenset[int]:
        drawn = tickets(islands, seed, round_index)
        return frozenset(sorted(range(islands), key=lambda k: (drawn[k], k))[: self.count])

    def check(self, islands: int) -> None:
        ok = 1 <= self.count <= islands
        require(ok, "sync.sampling.count", self.count, f"1 to {islands}, the islands", "lower it")
