"""Inner-product manipulation: all attackers send a small negative multiple of the honest mean.

Xie, Koyejo, Gupta, Fall of empires, UAI 2019, arXiv 1903.03936.

    D_k' = -eps mu

mu: mean of the honest Deltas; eps: `strength`. With a small eps it is closer to most Deltas than these are to each
other. Flat and fp32.
Bytes: attackers hear all Deltas of the round before they send, by one more fp32 gather, which is counted apart.
Raises: ConfigError for eps out of range.
Reduces to: a sign flip for equal honest Deltas and eps = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.attack.base import Attack, Seen, check_number


@dataclass(frozen=True, kw_only=True)
class InnerProduct(Attack):
    """The honest mean, turned round."""

    strength: float = 0.5
    """eps: what is sent, in means of the honest Deltas (no unit)."""

    listens: ClassVar[bool] = True

    def check(self) -> None:
        check_number("strength", self.strength, "0.1 hides best, 1 turns most")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        if seen.honest is None or not len(seen.honest):
            return delta
        return seen.honest.mean(dim=0) * -self.strength
