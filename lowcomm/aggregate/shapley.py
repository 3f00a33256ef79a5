"""Proof of contribution: what each island's Delta was worth to the round, by Shapley values over a proxy set.

Proof of contribution: Monte-Carlo Shapley values over an agreed validation set, after multi-Krum, on a blockchain;
truncated sampling: Ghorbani, Zou, Data Shapley, ICML 2019, arXiv 1904.02868.

    v(S) = loss(w) - loss(w - mean_{k in S} D_k),    phi_k = mean over permutations of v(P_k + k) - v(P_k)
    share_k = max(0, phi_k) / sum_j max(0, phi_j)

P_k: who stands before k in a permutation, drawn from the round's seed; `permutations` of them; one ends where v is
within `tolerance` of v of all. D is that of `rule`, which comes first: only islands that it gives a weight are scored,
the others have 0. Scores go to scores.jsonl, and change nothing of what is trained.
Shapes and dtypes: as the rule's. Bytes: the rule's. Cost: up to permutations * K losses of the proxy set per round and
island, each set of islands once. Raises: ConfigError without `sync.proxy`, for settings out of range, or what the rule
raises.
Deviates: nothing is encrypted or put on a chain: scores.jsonl is bound by hashes.
Reduces to: the rule; for one scored island the share is 1; for all permutations and tolerance 0 sum phi = v(all).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.gram import GramRule
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.norm_bound import NormBound
from lowcomm.aggregate.robust import RobustRule
from lowcomm.aggregate.table import table_of
from lowcomm.types import ConfigError, Contribution, Delta, require

Value = Callable[[frozenset[int]], float]


@dataclass(frozen=True, kw_only=True)
class Shapley(RobustRule):
    """Another rule's aggregate, with the contribution of each island that it takes."""

    rule: GramRule = field(default_factory=NormBound)
    """What is aggregated, and who is scored at all."""
    permutations: int = 10
    """Orders of the islands that are tried, 1 or more."""
    tolerance: float = 0.01
    """Part of v(all) within which a permutation ends."""

    @property
    def proxies(self) -> bool:
        return True

    @property
    def fewest(self) -> int:
        return self.rule.fewest

    @property
    def on_factors(self) -> bool:
        return self.rule.on_factors

    def weights(self, tokens: Sequence[float]) -> list[float]:
        return self.rule.weights(tokens)

    def check(self) -> None:
        fits = isinstance(self.rule, GramRule) and not self.rule.remembers
        legal = "a rule that weighs islands by inner products of this round alone"
        require(fits, "sync.aggregator.rule", type(self.rule).__name__, legal, "use Krum or NormBound")
        self.rule.check()
        ok = isinstance(self.permutations, int) and 1 <= self.permutations <= 1000
        require(ok, "sync.aggregator.permutations", self.permutations, "1 to 1000", "10 is usual")
        ok = 0 <= self.tolerance < 1
        require(ok, "sync.aggregator.tolerance", self.tolerance, "0 <= tolerance < 1", "0.01 is usual")

    def check_islands(self, islands: int) -> None:
        self.rule.check_islands(islands)

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        losses = context.losses
        if losses is None:
            raise ConfigError("sync.proxy = None is not allowed: Shapley judges by a text. Fix: pass proxy=Proxy()")
        made = self.rule.combine(contributions, context)
        table = context.sum_ranks(table_of([c.delta for c in contributions], context.start))
        found = self.rule.coefficients(table, [c.weight for c in contributions])
        scored = [i for i, c in enumerate(found) if c != 0]
        zeros = {name: t.new_zeros(()).expand_as(t) for name, t in contributions[0].delta.items()}
        known: dict[frozenset[int], float] = {}
        base = losses([zeros])[0]

        def value(team: frozenset[int]) -> float:
            if team not in known:
                known[team] = base - losses([_mean_of(contributions, sorted(team))])[0] if team else 0.0
            return known[team]

        phi = self._values(scored, value, context.round.seed)
        total = math.fsum(max(0.0, p) for p in phi.values())
        share = {i: max(0.0, p) / total if total > 0 else 1 / len(phi) for i, p in phi.items()}
        islands = {i: c.island for i, c in enumerate(contributions)}
        scores = {
            "phi": {k: phi.get(i, 0.0) for i, k in islands.items()},
            "share": {k: share.get(i, 0.0) for i, k in islands.items()},
        }
        shown = ", ".join(f"{k}: {s:.3g}" for k, s in scores["share"].items())
        return replace(made, notes=(*made.notes, f"Shapley: shares {shown}"), scores={**made.scores, **scores})

    def _values(self, scored: Sequence[int], value: Value, seed: int) -> dict[int, float]:
        """phi of those that are scored."""
        draw, whole = random.Random(seed), value(frozenset(scored))
        gains: dict[int, list[float]] = {i: [] for i in scored}
        for _ in range(self.permutations):
            order, team, before = draw.sample(list(scored), len(scored)), frozenset[int](), 0.0
            for i in order:
                near = team and abs(before - whole) < self.tolerance * abs(whole)
                after = before if near else value(team | {i})
                gains[i].append(after - before)
                team, before = team | {i}, after
        return {i: math.fsum(found) / len(found) for i, found in gains.items()}


def _mean_of(contributions: Sequence[Contribution], team: Sequence[int]) -> Delta:
    return Mean()([replace(contributions[i], weight=1 / len(team)) for i in team])
