"""FedFB: groups of islands weigh more as long as their loss is above the mean of the groups.

Zeng, Chen, Lee, Improving fairness via federated learning, 2021, arXiv 2110.15545.

    l_g <- clip(l_g + a / (t + 1) sign(F_g - mean F), 0, 1), then sum l = 1;    D = sum_k p_k D_k
    p_k ~ tokens_k l_g / s_g for the group g of island k

F_g: mean training loss of a group, by tokens; s_g: its share of the last round's tokens; a: `rate`; t: rounds. l is s
at first. Groups stand for a language, a source or a speaker. Shapes and dtypes: those of the contributions; one
number of state per group. Bytes: as the mean's, and 16 B per island and round.
Raises: ConfigError for settings out of range or other numbers of islands.
Deviates: the paper's clients hold text of several groups, here an island's is of one; a group never weighs less than
`LEAST`, as an island whose tokens all count nothing would be left out and never heard again.
Reduces to: the mean by tokens for a = 0, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lowcomm.aggregate.loss_weighted import Learnt, LossWeighted, Said
from lowcomm.types import require

SHARES, LAMBDAS, ROUNDS = "shares", "lambdas", "rounds"
LEAST = 1e-3


@dataclass(frozen=True, kw_only=True)
class FedFB(LossWeighted):
    """The mean by tokens times the weight of an island's group."""

    rate: float = 0.3
    """a: change of a group's weight in the first round (of 1)."""
    groups: tuple[int, ...] | None = None
    """Number of each island's group, from 0 on; None: each is one of its own."""

    def check(self) -> None:
        require(0 <= self.rate <= 1, "sync.aggregator.rate", self.rate, "0 to 1", "0.3 is usual")
        ok = self.groups is None or (len(self.groups) > 0 and set(self.groups) == set(range(max(self.groups) + 1)))
        legal = "numbers from 0 on, none of them left out"
        require(ok, "sync.aggregator.groups", self.groups, legal, "(0, 0, 1, 1) has two groups")

    def check_islands(self, islands: int) -> None:
        ok = self.groups is None or len(self.groups) == islands
        require(ok, "sync.aggregator.groups", self.groups, f"one number for each of {islands} islands", "leave it out")

    def factor(self, island: int, loss: float, learnt: Learnt) -> float:
        if not learnt:
            return 1.0
        group = self._group(island)
        share = learnt[SHARES][group]
        return max(learnt[LAMBDAS][group], LEAST) / share if share > 0 else 1.0

    def learn(self, said: Mapping[int, Said], learnt: Learnt, islands: int) -> Learnt:
        count = islands if self.groups is None else max(self.groups) + 1
        members = [[s for k, s in said.items() if self._group(k) == g] for g in range(count)]
        tokens = [math.fsum(s.tokens for s in group) for group in members]
        total = math.fsum(tokens)
        if not total > 0:
            return learnt
        shares = [t / total for t in tokens]
        if self.rate == 0:
            return {SHARES: shares, LAMBDAS: shares, ROUNDS: [0.0]}
        lambdas, rounds = (learnt[LAMBDAS], learnt[ROUNDS][0]) if learnt else (shares, 0.0)
        losses = {
            g: math.fsum(s.loss * s.tokens for s in members[g]) / tokens[g] for g in range(count) if tokens[g] > 0
        }
        usual = math.fsum(losses.values()) / len(losses)
        step = self.rate / (rounds + 1)
        moved = [
            min(1.0, max(LEAST, old + step * _sign(losses[g] - usual))) if g in losses else old
            for g, old in enumerate(lambdas)
        ]
        whole = math.fsum(moved)
        return {SHARES: shares, LAMBDAS: [m / whole for m in moved], ROUNDS: [rounds + 1]}

    def _group(self, island: int) -> int:
        return island if self.groups is None else self.groups[island]


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
