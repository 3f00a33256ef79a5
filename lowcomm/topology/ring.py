"""A ring: each island exchanges with the one before it and the one after it.

Lian et al., D-PSGD, arXiv 1705.09056.

    N(k) = {k - 1, k + 1} mod n

Two messages per island and round for any n >= 3. The gap falls with 1 / n^2: for more than about 16 islands
`Exponential` spreads weights faster for log2(n) times the bytes.
Reduces to: the mean of all islands for n <= 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.topology.base import Topology


@dataclass(frozen=True, kw_only=True)
class Ring(Topology):
    """The islands before and after one's own."""

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        return tuple(sorted({(island - 1) % islands, (island + 1) % islands} - {island}))
