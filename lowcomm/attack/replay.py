"""Replay: attackers send the Delta of their first round again and again.

    D_k'(t) = D_k(0)

A payload that is sent twice is refused by its header; here an old Delta is encoded anew, which no header shows.
Flat fp32 Deltas; no byte beside the contribution's own; one fp32 Delta of state per attacker, in its checkpoint.
Reduces to: no attack in the first round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.attack.base import Attack, Seen


@dataclass(frozen=True, kw_only=True)
class Replay(Attack):
    """An old Delta."""

    keeps: ClassVar[bool] = True

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return delta if seen.first is None else seen.first.to(delta.device)
