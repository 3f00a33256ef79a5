"""The static exponential graph: neighbours at distances 1, 2, 4, ... around a ring, both ways.

Ying et al., Exponential graph is provably efficient, arXiv 2110.13363.

    N(k) = {k + 2^i, k - 2^i mod n : 2^i <= n / 2}

About 2 log2(n) messages per island and round; the gap falls with 1 / log2(n).
Deviates: the paper's graph is directed (k + 2^i only); both ways, as mixing weights must be symmetric here.
Reduces to: the mean of all islands for n <= 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.topology.base import Topology


@dataclass(frozen=True, kw_only=True)
class Exponential(Topology):
    """Islands at distances that are powers of two."""

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        steps = [2**i for i in range(islands.bit_length()) if 2 ** (i + 1) <= islands]
        return tuple(sorted({(island + sign * step) % islands for step in steps for sign in (-1, 1)} - {island}))
