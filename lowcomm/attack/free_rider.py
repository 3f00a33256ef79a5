"""A free rider: noise that is as large as a Delta would be, from an island that wants the model for nothing.

Lin, Du, Liu, Free-riders in federated learning: attacks and defenses, 2019, arXiv 1911.12560.

    D_k' = ||D_k|| z / ||z||,    z ~ N(0, I)

z is drawn anew for each round and attacker, from the run's seed. Flat fp32 Deltas, no byte beside the contribution's.
Deviates: it trains all the same, here, to know the right norm: what it saves is not what is simulated.
Reduces to: nothing; it is Gaussian with factor 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowcomm.attack.base import Attack, Seen, noise_like, norm_of


@dataclass(frozen=True, kw_only=True)
class FreeRider(Attack):
    """Noise of the right norm."""

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return noise_like(delta, norm_of(delta), seen.round)
