"""The base of rules that pick or weigh islands by inner products of their Deltas.

    G[i,j] = <D_i, D_j>,    c = coefficients(G, weights),    D = sum_i c_i D_i

D_i: decoded Delta of island i, all its tensors as one vector. G: K x K for K contributions, fp64 on the CPU; squared
distances are G_ii + G_jj - 2 G_ij. The ranks of an island each hold a shard of every D_i: their tables are added
(`Context.sum_ranks`), so that all ranks get the same c. LoRA factors count as the dW that they make (`table.py`).
All islands must get the same c as well, on whatever hardware. D is made in island order, product and sum rounded apart;
of adapters it is the sum of factors' Deltas, as FedIT has it: their choice is free of the factors' basis, D is not.
Cost: K payloads at every island (the exchange is a gather) and K fp32 Deltas in memory; K^2 products per parameter.
A rule that remembers has its last D as row K of G, and keeps it: one more fp32 Delta in memory and checkpoints.
With fragments each one has a choice of its own.
Raises: ValueError without contributions.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.robust import RobustRule
from lowcomm.aggregate.table import table_of
from lowcomm.types import Contribution, Delta, require

Choice = Callable[[Tensor, Sequence[float]], list[float]]
"""G and weights -> c."""


@dataclass(frozen=True, kw_only=True)
class GramRule(RobustRule):
    """A rule that maps a Gram table and weights to coefficients."""

    by: Literal["tokens", "uniform"] = "uniform"
    """What an island weighs among those that a rule takes: the same for each, or the tokens that it says it trained."""

    remembers: ClassVar[bool] = False
    """Whether the D of its last committed round is the last row of G; the first round has a row of zeros there."""
    picks: ClassVar[bool] = True
    """Whether it takes islands or leaves them out; else it weighs them all, and its note says how."""

    @abstractmethod
    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        """c: one number per row of G, 0 leaves it out, not all 0. gram: fp64; weights, of contributions, sum to 1.

        A pure function whose bits are the same everywhere: math.fsum, not sum, which versions of Python round apart.
        """

    @property
    def on_factors(self) -> bool:
        return True

    def weights(self, tokens: Sequence[float]) -> list[float]:
        return Mean(by=self.by).weights(tokens)

    def check(self) -> None:
        require(self.by in ("tokens", "uniform"), "sync.aggregator.by", self.by, "tokens or uniform", "use uniform")

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        """The weighted sum; a note names the islands that are taken and those left out, or what each weighs."""
        return by_table(self, type(self).__name__, self.coefficients, contributions, context)


def by_table(
    rule: GramRule, name: str, choose: Choice, contributions: Sequence[Contribution], context: Context
) -> Aggregate:
    """What a choice makes of contributions; rule: says what is remembered and noted, under `name`."""
    if not contributions:
        raise ValueError("no contribution to aggregate")
    rows = [c.delta for c in contributions]
    if rule.remembers:
        rows.append(_remembered(rows[0], context.state))
    found = choose(context.sum_ranks(table_of(rows, context.start)), [c.weight for c in contributions])
    first = contributions[0]
    last = [dataclasses.replace(first, delta=d) for d in rows[len(contributions) :]]
    taken = [dataclasses.replace(one, weight=c) for one, c in zip([*contributions, *last], found, strict=True) if c]
    delta = Mean()(taken)
    note = _note(name, rule.picks, [c.island for c in contributions], found)
    return Aggregate(delta=delta, notes=(note,), state=dict(delta) if rule.remembers else {})


def _remembered(like: Delta, state: Delta) -> Delta:
    """The D of the last round on the Deltas' device, or zeros."""
    if not state:
        return {name: torch.zeros_like(t) for name, t in like.items()}
    return {name: state[name].to(t.device) for name, t in like.items()}


def _note(name: str, picks: bool, islands: Sequence[int], found: Sequence[float]) -> str:
    if not picks:
        return f"{name}: weights {', '.join(f'{k}: {c:.4g}' for k, c in zip(islands, found, strict=False))}"
    pairs = list(zip(islands, found, strict=False))
    out = ", ".join(str(k) for k, c in pairs if c == 0) or "none"
    return f"{name}: chosen islands {', '.join(str(k) for k, c in pairs if c != 0)}; left out {out}"


def distances_from(gram: Sequence[Sequence[float]], point: Sequence[float]) -> list[float]:
    """||D_i - v|| of every row i, for v = sum_j point_j D_j; rounding may make a square negative."""
    along = [math.fsum(g * p for g, p in zip(row, point, strict=True)) for row in gram]
    square = math.fsum(a * p for a, p in zip(along, point, strict=True))
    return [math.sqrt(max(0.0, row[i] - 2 * along[i] + square)) for i, row in enumerate(gram)]


def norm_factors(gram: Sequence[Sequence[float]], count: int) -> list[float]:
    """min(1, median norm / own norm) of the first `count` rows; of an even number the lower of the middle two."""
    norms = [math.sqrt(max(0.0, gram[i][i])) for i in range(count)]
    usual = sorted(norms)[(count - 1) // 2]
    return [1.0 if norm <= usual else usual / norm for norm in norms]
