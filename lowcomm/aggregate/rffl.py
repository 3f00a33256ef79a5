"""Reputation: islands weigh by how well their Deltas have agreed with the update, and those below a share are removed.

Xu, Lyu, A reputation mechanism is all you need (RFFL), 2020, arXiv 2011.10464.

    u_k = D_k min(1, G / ||D_k||),    D = sum_k r_k u_k,    phi_k = cos(u_k, D)
    r_k <- max(0, a r_k + (1 - a) phi_k), then sum r = 1;    removed for good: r_k < t / |R|

r: reputations of the islands that are left, R, at first their weights; they are state, in the checkpoint. a: `keep`; t:
`least`; G: `radius`, or the median norm. A round's D has the reputations before it; those of islands that are not in a
round rest. All is done on the Gram table, so that shards and islands agree.
Shapes and dtypes: as in `gram.py`; two fp64 numbers of state per island. Bytes: (K - 1) payloads each way per island.
Raises: ConfigError for fewer than 3 islands or settings out of range; SyncError if a round has too few, or all that are
in it have been removed.
Deviates: no graded replies: islands gather all payloads, so that none can be given less than the others. Removal begins
after the first round, as a cosine of one round is mostly noise where texts differ.
Reduces to: the mean with the first round's weights for a = 1, t = 0 and G = infinity, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context, State
from lowcomm.aggregate.gram import GramRule, by_table, norm_factors
from lowcomm.types import Contribution, UnusableError, require


@dataclass(frozen=True, kw_only=True)
class RFFL(GramRule):
    """The mean weighted by reputation."""

    keep: float = 0.95
    """a: fraction of the old reputation that is in the new one."""
    least: float = 1 / 3
    """t: reputation below which an island is removed, in shares of an equal one; 0 removes nobody."""
    radius: float | None = None
    """G: L2 norm to which Deltas are cut; None: the median of the round."""

    picks: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        require(0 <= self.keep <= 1, "sync.aggregator.keep", self.keep, "0 to 1", "0.95 is usual")
        require(0 <= self.least < 1, "sync.aggregator.least", self.least, "0 <= least < 1", "1/3 is usual")
        ok = self.radius is None or self.radius > 0
        require(ok, "sync.aggregator.radius", self.radius, "above 0, or None for the median norm", "leave it out")

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        return self._clipped(gram.tolist(), weights)

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        reputation, removed = _state(context.state, contributions)
        heard = [c.island for c in contributions]
        known = [0.0 if removed[k] else reputation[k] for k in heard]
        total = math.fsum(known)
        if not total > 0:
            raise UnusableError(
                f"round {context.round.index}: islands {heard} have all been removed for their reputation. Nothing was "
                "committed. Fix: lower sync.aggregator.least, or let other islands take part"
            )
        shares = _scaled(known)
        agreed: list[float] = []

        def choose(gram: Tensor, _: Sequence[float]) -> list[float]:
            table = gram.tolist()
            found = self._clipped(table, shares)
            agreed.extend(_cosines(table, found))
            return found

        made = by_table(self, type(self).__name__, choose, contributions, context)
        for k, phi in zip(heard, agreed, strict=True):
            reputation[k] = 0.0 if removed[k] else max(0.0, self.keep * reputation[k] + (1 - self.keep) * phi)
        gone = self._remove(reputation, removed) if context.state else []
        reputation = _scaled(reputation)
        notes = (*made.notes, *(f"RFFL: island {k} is removed for good" for k in gone))
        state = {"reputation": torch.tensor(reputation, dtype=torch.float64), "removed": torch.tensor(removed)}
        scores = {"reputation": dict(enumerate(reputation))}
        return replace(made, notes=notes, state=state, scores=scores)

    def _clipped(self, gram: Sequence[Sequence[float]], shares: Sequence[float]) -> list[float]:
        if self.radius is None:
            factors = norm_factors(gram, len(shares))
        else:
            norms = [math.sqrt(max(0.0, row[i])) for i, row in enumerate(gram)]
            factors = [1.0 if n <= self.radius else self.radius / n for n in norms]
        return [r * s for r, s in zip(shares, factors, strict=True)]

    def _remove(self, reputation: list[float], removed: list[bool]) -> list[int]:
        """Remove who is below the share; changes both lists, and returns the islands' numbers."""
        left = [k for k, r in enumerate(removed) if not r]
        total = math.fsum(reputation[k] for k in left)
        if not total > 0:
            return []
        gone = [k for k in left if reputation[k] / total < self.least / len(left)]
        for k in gone:
            removed[k], reputation[k] = True, 0.0
        return gone


def _state(state: State, contributions: Sequence[Contribution]) -> tuple[list[float], list[bool]]:
    """Reputation and removal by island number; a newcomer has the mean of those that are known."""
    reputation: list[float] = state["reputation"].tolist() if state else []
    removed: list[bool] = state["removed"].tolist() if state else []
    left = [r for r, gone in zip(reputation, removed, strict=True) if not gone]
    known = left if state else [c.weight for c in contributions]
    usual = math.fsum(known) / len(known) if known else 0.0
    most = max(c.island for c in contributions)
    reputation += [usual] * (most + 1 - len(reputation))
    removed += [False] * (most + 1 - len(removed))
    if not state:
        for c in contributions:
            reputation[c.island] = c.weight
    return reputation, removed


def _scaled(shares: Sequence[float]) -> list[float]:
    """Shares that sum to 1; those that do so but for rounding stay as they are, and so do zeros."""
    total = math.fsum(shares)
    return list(shares) if total <= 0 or abs(total - 1) < 1e-12 else [s / total for s in shares]


def _cosines(gram: Sequence[Sequence[float]], point: Sequence[float]) -> list[float]:
    """cos(D_k, D) for D = sum_j point_j D_j; 0 where one of them is 0. A clip of D_k does not turn it."""
    along = [math.fsum(g * p for g, p in zip(row, point, strict=True)) for row in gram]
    square = math.fsum(a * p for a, p in zip(along, point, strict=True))
    size = [math.sqrt(max(0.0, row[i]) * max(0.0, square)) for i, row in enumerate(gram)]
    return [a / s if s > 0 else 0.0 for a, s in zip(along, size, strict=True)]
