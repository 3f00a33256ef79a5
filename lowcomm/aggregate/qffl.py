"""q-FFL: islands weigh by a power of their loss, so that the worst served count more.

Li, Sanjabi, Beirami, Smith, Fair resource allocation in federated learning, ICLR 2020, arXiv 1905.10497.

    D = sum_k p_k D_k,    p_k ~ tokens_k F_k^q

F_k: mean training loss of the round; q: `power`. Shapes and dtypes: those of the contributions. Bytes: as the mean's,
and 16 B per island and round. Raises: ConfigError for q out of range.
Deviates: the paper's step is scaled by an estimate of the Lipschitz constant, here weights sum to 1 and the outer
optimizer scales; F_k is of the inner steps, not of the start.
Reduces to: the mean by tokens for q = 0, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.aggregate.loss_weighted import Learnt, LossWeighted
from lowcomm.types import require

LEAST_LOSS = 1e-6
"""Nats per token below which a loss counts as this."""


@dataclass(frozen=True, kw_only=True)
class QFFL(LossWeighted):
    """The mean by tokens times loss to a power."""

    power: float = 1.0
    """q (no unit): 0 is the mean, 5 leans far towards the worst."""

    def check(self) -> None:
        require(0 <= self.power <= 10, "sync.aggregator.power", self.power, "0 to 10", "1 is a beginning")

    def factor(self, island: int, loss: float, learnt: Learnt) -> float:
        return max(loss, LEAST_LOSS) ** self.power
