"""Sign flip: attackers pull the model back to where the others come from.

Li, Xu, Chen, Giannakis, Ling, RSA: Byzantine-robust stochastic aggregation, AAAI 2019, arXiv 1811.03761.

    D_k' = -c D_k

c: `factor`. Flat fp32 Deltas; no byte beside the contribution's own. Raises: ConfigError for c out of range.
Deviates: pseudo-gradients of H steps take the place of gradients. Reduces to: no attack for c = -1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowcomm.attack.base import Attack, Seen, check_number


@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """The negative Delta."""

    factor: float = 1.0
    """c: what is sent, in honest Deltas (no unit)."""

    def check(self) -> None:
        check_number("factor", self.factor, "1 keeps the norm")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return delta * -self.factor
