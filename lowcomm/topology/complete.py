"""All islands with all, each with weights of its own: what other topologies are compared with.

    N(k) = {0, ..., n - 1} without k;   W_kj = 1 / n

n - 1 messages per island and round; the gap is 1. The default exchange gives the same mean for 2 (n - 1) / n messages.
Reduces to: FedAvg with uniform weights, up to rounding, for an outer SGD of rate 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.topology.base import Topology


@dataclass(frozen=True, kw_only=True)
class Complete(Topology):
    """Everybody is everybody's neighbour."""

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        return tuple(k for k in range(islands) if k != island)
