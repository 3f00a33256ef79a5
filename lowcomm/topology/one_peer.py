"""The one-peer exponential graph: one neighbour per round, at distances 1, 2, 4, ... in turn.

Ying et al., Exponential graph is provably efficient, arXiv 2110.13363.

    round t: s = 2^(t mod ceil(log2 n));   N(k) = {k + s} if k mod 2 s < s, else {k - s}

One message per island and round, whatever n. For n a power of two, ceil(log2 n) rounds of mixing alone give every
island the exact mean, which no graph that stays the same does at that price.
Deviates: in the paper k sends to k + s and hears k - s, another one; here they are the pairs of a hypercube, as mixing
weights must be symmetric. Exact for powers of two as the paper's is, with the same bytes. For other n an island without
a partner rests, and the mean comes as with `RandomPairs`, in the limit only.
Reduces to: the mean of both for n = 2; the mean of all after log2 n rounds for powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowcomm.topology.base import Topology


@dataclass(frozen=True, kw_only=True)
class OnePeer(Topology):
    """One island per round, twice as far away each time."""

    varies: ClassVar[bool] = True

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        distance = 2 ** (round_index % max(1, (islands - 1).bit_length()))
        partner = island ^ distance
        return (partner,) if partner < islands else ()
