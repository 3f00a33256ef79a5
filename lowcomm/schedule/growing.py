"""A period that grows from round to round, as the learning rate falls and islands drift less.

Gu et al., A quadratic synchronization rule, arXiv 2310.14423: H may grow as the rate falls (there as its square).

    H_k = min(longest, floor(H g^k)),   round k ends after step H_0 + ... + H_k

H: `sync.every`; g: `growth`; longest: `longest`.
Cost: one model of payload per island each way at the end of each round.
Raises: ConfigError for a growth below 1, or a longest period shorter than the first.
Deviates: H follows the number of the round, not the learning rate itself.
Reduces to: EveryH for growth = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from lowcomm.schedule.base import Action, Schedule, check_every
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Growing(Schedule):
    """Each round is `growth` times as long as the one before it."""

    growth: float = 1.02
    """Factor between a round and the next, 1 or more."""
    longest: int = 1024
    """Inner steps of a round, at most."""

    def __call__(self, step: int, every: int) -> Action:
        return Action(sync=(0,) if step in _ends(every, self.growth, self.longest, -(-step // 4096) * 4096) else ())

    def check(self, every: int, steps: int | None) -> None:
        check_every(every, steps)
        ok = 1 <= self.growth <= 2
        require(ok, "sync.schedule.growth", self.growth, "1 to 2", "1.02 doubles the period in 35 rounds")
        fix = "leave it out, or lower --sync.every"
        require(self.longest >= every, "sync.schedule.longest", self.longest, f"{every} (sync.every) or more", fix)


@cache
def _ends(every: int, growth: float, longest: int, limit: int) -> frozenset[int]:
    """Steps up to `limit` after which a round ends."""
    ends, at, number = set[int](), 0, 0
    while at <= limit:
        # an exponent that would overflow has long met `longest`
        power = number * math.log(growth)
        at += longest if power > math.log(longest / every) else min(longest, math.floor(every * math.exp(power) + 1e-9))
        ends.add(at)
        number += 1
    return frozenset(ends)
