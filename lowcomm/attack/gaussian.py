"""Gaussian noise in the place of a Delta, larger than it.

Blanchard, El Mhamdi, Guerraoui, Stainer, Krum, NeurIPS 2017, arXiv 1703.02757 (its "Gaussian Byzantine").

    D_k' = c ||D_k|| z / ||z||,    z ~ N(0, I)

c: `factor`; z is drawn anew for each round and attacker, from the run's seed. Flat fp32 Deltas; no byte beside the
contribution's own. Raises: ConfigError for c out of range.
Deviates: the paper draws with a standard deviation of 200, whatever a gradient's size.
Reduces to: a free rider for c = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowcomm.attack.base import Attack, Seen, check_number, noise_like, norm_of


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Loud noise."""

    factor: float = 5.0
    """c: norm of the noise, in norms of the honest Delta."""

    def check(self) -> None:
        check_number("factor", self.factor, "5 is below what sync.norm_bound refuses")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return noise_like(delta, self.factor * norm_of(delta), seen.round)
