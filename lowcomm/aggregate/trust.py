"""Trust that is lost at once and won back slowly: islands weigh by how good their Deltas have been so far.

Trust penalisation with an append-only log, there for asynchronous updates, here for rounds.

    q_k = loss(w) - loss(w - D_k) on a proxy set, or cos(D_k, last D);    bad: q_k < median q - 2 MAD
    T_k <- T_k * `penalty` if bad, else min(1, T_k + `reward`);    T_k < `least`: out for `rest` rounds, then `back`
    D = sum_k p_k T_k D_k / sum_j p_j T_j

T is 1 at first; a round's D has the T that its own q leads to. MAD: median of |q_k - median q|, at least 1e-12. T and
the rounds that are left to rest are state, in the checkpoint; q and T go to scores.jsonl, whose lines are bound by
hashes. Shapes and dtypes: as in `gram.py`; by = "cosine" keeps one fp32 Delta of state.
Bytes: (K - 1) payloads each way per island and round. Cost by losses: K + 1 losses of the proxy set per island.
Raises: ConfigError for fewer than 3 islands, settings out of range or no `sync.proxy` where it judges by one;
UnusableError where nobody who is trusted took part.
Deviates: rounds in lockstep, so that staleness is 0; the weights are scaled to sum to 1. The first cosine is with
nothing, so that all are good.
Reduces to: the mean for penalty = 1, bit for bit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.robust import RobustRule
from lowcomm.aggregate.table import table_of
from lowcomm.types import ConfigError, Contribution, UnusableError, require

LEAST_MAD = 1e-12


@dataclass(frozen=True, kw_only=True)
class Trust(RobustRule):
    """The mean weighted by trust."""

    by: Literal["cosine", "losses"] = "cosine"
    """What a Delta is judged by: its direction against the last update's, or the loss of a proxy set."""
    penalty: float = 0.5
    """Fraction of its trust that an island keeps whose Delta was bad; 1 loses none."""
    reward: float = 0.05
    """What is added to the trust of one whose Delta was good, of 1 at most (fraction)."""
    least: float = 0.1
    """Fraction of full trust below which an island is left out for a while."""
    back: float = 0.3
    """Fraction of full trust with which it comes back."""
    rest: int = 5
    """Rounds for which it is left out."""

    @property
    def proxies(self) -> bool:
        return self.by == "losses"

    @property
    def on_factors(self) -> bool:
        return True

    def check(self) -> None:
        require(self.by in ("cosine", "losses"), "sync.aggregator.by", self.by, "cosine or losses", "use cosine")
        require(0 < self.penalty <= 1, "sync.aggregator.penalty", self.penalty, "0 < penalty <= 1", "0.5 is usual")
        require(0 <= self.reward <= 1, "sync.aggregator.reward", self.reward, "0 to 1", "0.05 is usual")
        require(0 <= self.least < 1, "sync.aggregator.least", self.least, "0 <= least < 1", "0.1 is usual")
        ok = self.least <= self.back <= 1
        require(ok, "sync.aggregator.back", self.back, f"least ({self.least}) to 1", "0.3 is usual")
        ok = isinstance(self.rest, int) and self.rest >= 1
        require(ok, "sync.aggregator.rest", self.rest, "a whole number, 1 or more", "5 is usual")

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        trust, resting = _read(context, max(c.island for c in contributions) + 1)
        quality = self._quality(contributions, context)
        here = [c.island for c in contributions]
        judged = {k: q for k, q in zip(here, quality, strict=True) if not resting[k]}
        middle = statistics.median(judged.values()) if judged else 0.0
        spread = max(LEAST_MAD, statistics.median(abs(q - middle) for q in judged.values())) if judged else 0.0
        for k in range(len(trust)):
            if resting[k]:
                resting[k] -= 1
                trust[k] = trust[k] if resting[k] else self.back
            elif k in judged:
                bad = judged[k] < middle - 2 * spread
                trust[k] = trust[k] * self.penalty if bad else min(1.0, trust[k] + self.reward)
                if trust[k] < self.least:
                    resting[k] = self.rest
        shares = [0.0 if resting[c.island] else c.weight * trust[c.island] for c in contributions]
        total = math.fsum(shares)
        if not total > 0:
            raise UnusableError(f"round {context.round.index}: no island that Trust trusts took part")
        even = abs(total - 1) < 1e-12
        taken = [replace(c, weight=s if even else s / total) for c, s in zip(contributions, shares, strict=True) if s]
        delta = Mean()(taken)
        state = {
            "trust": torch.tensor(trust, dtype=torch.float64),
            "resting": torch.tensor(resting),
            **({f"last/{name}": t for name, t in delta.items()} if self.by == "cosine" else {}),
        }
        scores = {"quality": dict(zip(here, quality, strict=True)), "trust": {k: trust[k] for k in here}}
        note = f"Trust: weights {', '.join(f'{k}: {s / total:.4g}' for k, s in zip(here, shares, strict=True))}"
        return Aggregate(delta=delta, notes=(note,), state=state, scores=scores)

    def _quality(self, contributions: Sequence[Contribution], context: Context) -> list[float]:
        deltas = [c.delta for c in contributions]
        if self.by == "losses":
            if context.losses is None:
                raise ConfigError("sync.proxy = None is not allowed: Trust judges by a text. Fix: pass proxy=Proxy()")
            zeros = {name: t.new_zeros(()).expand_as(t) for name, t in deltas[0].items()}
            before, *after = context.losses([zeros, *deltas])
            return [before - a for a in after]
        if not any(name.startswith("last/") for name in context.state):
            return [0.0] * len(deltas)
        last = {name: context.state[f"last/{name}"].to(t.device) for name, t in deltas[0].items()}
        table: list[list[float]] = context.sum_ranks(table_of([*deltas, last], context.start)).tolist()
        return [_cosine(table, i, len(deltas)) for i in range(len(deltas))]


def _cosine(table: Sequence[Sequence[float]], i: int, j: int) -> float:
    size = math.sqrt(max(0.0, table[i][i]) * max(0.0, table[j][j]))
    return table[i][j] / size if size > 0 else 0.0


def _read(context: Context, count: int) -> tuple[list[float], list[int]]:
    trust: list[float] = context.state["trust"].tolist() if "trust" in context.state else []
    resting: list[int] = context.state["resting"].tolist() if "resting" in context.state else []
    more = count - len(trust)
    return trust + [1.0] * more, resting + [0] * more
