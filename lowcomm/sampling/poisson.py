"""Each client takes part in a round with the same chance, whatever the others do.

McMahan, Ramage, Talwar, Zhang, DP-FedAvg, arXiv 1710.06963; Abadi et al., arXiv 1607.00133 (amplification).

    P(k in S_t) = q, independent for all k and t;  Delta = sum_{k in S_t} p_k Delta_k,  sum_{k in S_t} p_k = 1

q: `rate`. No bytes, no state: tickets are hashes of (seed, round, island). A round without anybody is legal: it commits
nothing, costs no bytes, and its number is used up.
With client-level privacy the weights are 1 / (q n), not renormalised, and every island adds its share of the noise,
sampled or not: only then does nothing but the noised sum depend on who was there, and is a round's privacy amplified.
Raises: ConfigError for a rate out of range.
Reduces to: no sampling for rate = 1, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowcomm.sampling.base import Sampling, tickets
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Poisson(Sampling):
    """Each island with probability `rate` in every round."""

    rate: float = 0.5
    """q: chance of each island, 0 < rate <= 1."""

    independent: ClassVar[bool] = True

    @property
    def chance(self) -> float:
        return self.rate

    def draw(self, islands: int, seed: int, round_index: int) -> frozenset[int]:
        drawn = tickets(islands, seed, round_index)
        return frozenset(k for k in range(islands) if drawn[k] < self.rate * 2**64)

    def check(self, islands: int) -> None:
        require(0 < self.rate <= 1, "sync.sampling.rate", self.rate, "0 < rate <= 1", "0.5")
