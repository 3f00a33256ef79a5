"""A multigraph over another topology: slow links take part in fewer rounds, and who has only slow ones does not wait.

Do, Nguyen, Tran et al., Reducing training time in cross-silo federated learning using multigraph topology, arXiv
2207.09657.

    n_ij = min(t_max, round(d_ij / min d));   in round s edge ij is strong iff s mod n_ij = 0, else weak
    strong: exchange and wait;   weak: the neighbour's last weights are taken, nobody waits

d_ij: delay of the edge in seconds (compute, latency, bytes over rate): `delay_s` of the slower of its two islands;
t_max: `longest`. An island whose edges are all weak mixes what it remembers and goes on at once.
Cost: of each edge one message every n_ij rounds; a copy of the last weights of every neighbour on each island.
Raises: ConfigError for delays that are not one per island, or not positive.
Deviates: delays are given for each island, not for each pair; n_ij counts rounds from 0, in which all edges are strong.
Reduces to: the overlay with every edge in every round for t_max = 1, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from lowcomm.topology.base import Topology
from lowcomm.topology.ring import Ring
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Multigraph(Topology):
    """Edges that rest as often as they are slow."""

    overlay: Topology = field(default_factory=Ring)
    """The graph whose edges these are; one that does not vary."""
    delay_s: tuple[float, ...] = ()
    """Seconds that each island needs for a round and its message, more than 0; the slower one's count. Empty: alike."""
    longest: int = 5
    """t_max: rounds in which an edge takes part at least once, 1 or more."""

    varies: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        near = self.overlay.neighbours(round_index, island, islands, seed)
        return tuple(j for j in near if round_index % self.period(island, j) == 0)

    def weights(self, round_index: int, islands: int, seed: int) -> list[list[float]]:
        return self.overlay.weights(round_index, islands, seed)

    def period(self, island: int, other: int) -> int:
        """n_ij: rounds from one exchange of an edge to the next."""
        if not self.delay_s:
            return 1
        slower = max(self.delay_s[island], self.delay_s[other])
        return max(1, min(self.longest, math.floor(slower / min(self.delay_s) + 0.5)))

    def check(self, islands: int) -> None:
        name = "sync.exchange.topology"
        self.overlay.check(islands)
        still = not self.overlay.varies
        require(still, f"{name}.overlay", self.overlay, "a topology that stays the same", "Ring() or Torus()")
        ok = len(self.delay_s) in (0, islands) and all(0 < d < math.inf for d in self.delay_s)
        legal = f"{islands} numbers of seconds above 0, one per island, or none"
        require(ok, f"{name}.delay_s", self.delay_s, legal, "give one per island")
        require(1 <= self.longest <= 1000, f"{name}.longest", self.longest, "1 to 1000", "5 is usual")
