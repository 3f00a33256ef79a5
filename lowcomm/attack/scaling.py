"""Scaling: attackers blow their Deltas up, so that these outweigh the others'.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, How to backdoor federated learning, AISTATS 2020, arXiv 1807.00459.

    D_k' = c D_k

c: `factor`. Flat fp32 Deltas; no byte beside the contribution's own. Raises: ConfigError for c out of range.
Deviates: the paper's attacker scales a backdoored model, here an honest Delta. c = 10 is just what `sync.norm_bound`
lets pass by default. Reduces to: no attack for c = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowcomm.attack.base import Attack, Seen, check_number


@dataclass(frozen=True, kw_only=True)
class Scaling(Attack):
    """A Delta many times too large."""

    factor: float = 10.0
    """c: what is sent, in honest Deltas (no unit)."""

    def check(self) -> None:
        check_number("factor", self.factor, "10 is usual")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return delta * self.factor
