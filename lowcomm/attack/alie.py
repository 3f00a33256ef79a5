"""A little is enough: all attackers send one vector that lies within the spread of the honest Deltas.

Baruch, Baruch, Goldberg, A little is enough, NeurIPS 2019, arXiv 1902.06156.

    D_k'[x] = mu[x] - z s[x]

mu, s: mean and standard deviation (of the sample) of the honest Deltas, by coordinate; z: `deviations`. Flat and
fp32.
Bytes: attackers hear all Deltas of the round before they send, by one more fp32 gather, which is counted apart.
Raises: ConfigError for z out of range or for fewer than two honest islands.
Deviates: the paper's attackers estimate mu and s from their own, and z from n and f; with 8 islands it is 0 or less.
Reduces to: the honest mean, which harms nobody, for z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.attack.base import Attack, Seen, check_number
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class ALIE(Attack):
    """The honest mean, moved by some standard deviations."""

    deviations: float = 1.5
    """z: standard deviations between what is sent and the mean (no unit)."""

    listens: ClassVar[bool] = True

    def check(self) -> None:
        check_number("deviations", self.deviations, "1.5 is usual")

    def check_islands(self, islands: int) -> None:
        super().check_islands(islands)
        legal = "numbers that leave two honest islands, whose spread it hides in"
        require(islands - len(self.islands) >= 2, "sync.attack.islands", self.islands, legal, "name fewer")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        honest = seen.honest
        if honest is None or len(honest) < 2:
            return delta
        return honest.mean(dim=0) - self.deviations * honest.std(dim=0)
