"""Mixing before a rule: each vector that the rule sees is a combination of Deltas.

    Y_a = sum_i M[a,i] D_i,    q_a: what Y_a weighs,    D = rule(Y, q)

`NNM() | TrimmedMean()` is a rule, `Bucketing() | NNM()` a mixing. M follows from the Gram table of the Deltas and the
round (`gram.py`). A rule that works on a table gets M G M' and its c becomes M' c, so no Y is ever made; for one that
looks at coordinates all Y are, which costs as many fp32 Deltas of memory again.
Raises: ConfigError for too few islands on either side of `|`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Aggregator, Context
from lowcomm.aggregate.gram import GramRule, by_table
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.robust import RobustRule
from lowcomm.aggregate.table import gram_table
from lowcomm.types import Contribution, Round, require

Matrix = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Mixing(ABC):
    """What stands before `|`."""

    @property
    @abstractmethod
    def fewest(self) -> int:
        """Contributions that it needs."""

    @property
    def withstands(self) -> int:
        """Vectors of any size that it keeps out of the others."""
        return 0

    @abstractmethod
    def outputs(self, count: int) -> int:
        """Vectors that it makes of `count` contributions; never falls as these rise."""

    @abstractmethod
    def matrix(self, gram: Matrix, weights: Sequence[float], round: Round) -> tuple[Matrix, list[float]]:
        """(M, q): one row per vector; both sums of q and of each row are 1. Bits are the same everywhere."""

    def check(self) -> None:  # noqa: B027
        """Raise ConfigError for a setting out of range."""

    def check_islands(self, islands: int) -> None:
        """Raise ConfigError for too few islands."""
        legal = f"{type(self).__name__} needs {self.fewest} islands, there are {islands}"
        require(islands >= self.fewest, "sync.aggregator.first", type(self).__name__, legal, f"start {self.fewest}")

    @overload
    def __or__(self, other: Mixing) -> Chain: ...
    @overload
    def __or__(self, other: Aggregator) -> Mixed: ...
    def __or__(self, other: Mixing | Aggregator) -> Chain | Mixed:
        if isinstance(other, Mixing):
            return Chain(first=self, second=other)
        if isinstance(other, Mixed):
            return Mixed(first=Chain(first=self, second=other.first), then=other.then)
        return Mixed(first=self, then=other)


@dataclass(frozen=True, kw_only=True)
class Chain(Mixing):
    """Two mixings after each other."""

    first: Mixing
    second: Mixing

    @property
    def fewest(self) -> int:
        return _fewest(self.first, self.second.fewest)

    def outputs(self, count: int) -> int:
        return self.second.outputs(self.first.outputs(count))

    def matrix(self, gram: Matrix, weights: Sequence[float], round: Round) -> tuple[Matrix, list[float]]:
        mix, shares = self.first.matrix(gram, weights, round)
        again, shares = self.second.matrix(mixed_table(gram, mix), shares, round)
        return product(again, mix), shares

    def check(self) -> None:
        self.first.check()
        self.second.check()

    def check_islands(self, islands: int) -> None:
        self.first.check_islands(islands)
        self.second.check_islands(self.first.outputs(islands))


@dataclass(frozen=True, kw_only=True)
class Mixed(RobustRule):
    """A mixing and the rule that sees what it makes."""

    first: Mixing
    then: Aggregator

    @property
    def fewest(self) -> int:
        return _fewest(self.first, self.then.fewest)

    @property
    def withstands(self) -> int:
        return min(self.first.withstands, self.then.withstands)

    @property
    def on_factors(self) -> bool:
        return isinstance(self.then, GramRule)

    def weights(self, tokens: Sequence[float]) -> list[float]:
        return self.then.weights(tokens)

    def check(self) -> None:
        fits = isinstance(self.then, RobustRule) and not isinstance(self.then, Mixed) and not self.then.proxies
        legal = "a rule that sees each vector: a faulty island's is among them still"
        require(fits, "sync.aggregator.then", type(self.then).__name__, legal, "use TrimmedMean")
        self.first.check()
        self.then.check()

    def check_islands(self, islands: int) -> None:
        self.first.check_islands(islands)
        self.then.check_islands(self.first.outputs(islands))

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        rule = self.then
        if isinstance(rule, GramRule):
            return by_table(
                rule, self._name, lambda g, p: self._choose(rule, g, p, context.round), contributions, context
            )
        if not contributions:
            raise ValueError("no contribution to aggregate")
        gram = context.sum_ranks(gram_table([c.delta for c in contributions]))
        mix, shares = self.first.matrix(gram.tolist(), [c.weight for c in contributions], context.round)
        return rule.combine(
            [_blend(contributions, row, a, q) for a, (row, q) in enumerate(zip(mix, shares, strict=True))], context
        )

    @property
    def _name(self) -> str:
        return f"{type(self.first).__name__} | {type(self.then).__name__}"

    def _choose(self, rule: GramRule, gram: Tensor, weights: Sequence[float], round: Round) -> list[float]:
        table: Matrix = gram.tolist()
        count, more = len(weights), len(table) - len(weights)
        mix, shares = self.first.matrix([row[:count] for row in table[:count]], weights, round)
        whole = [[*row, *[0.0] * more] for row in mix]
        whole += [[0.0] * count + [float(i == j) for j in range(more)] for i in range(more)]
        found = rule.coefficients(torch.tensor(mixed_table(table, whole), dtype=torch.float64), shares)
        return product([found], whole)[0]


def product(left: Matrix, right: Matrix) -> Matrix:
    """A matrix product whose sums are rounded once."""
    columns = list(zip(*right, strict=True))
    return [[math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left]


def mixed_table(gram: Matrix, mix: Matrix) -> Matrix:
    """M G M', symmetric."""
    half = product(mix, gram)
    lower = [
        [math.fsum(a * b for a, b in zip(half[i], mix[j], strict=True)) for j in range(i + 1)] for i in range(len(mix))
    ]
    return [[lower[max(i, j)][min(i, j)] for j in range(len(mix))] for i in range(len(mix))]


def _blend(contributions: Sequence[Contribution], row: Sequence[float], number: int, share: float) -> Contribution:
    used = [replace(c, weight=m) for c, m in zip(contributions, row, strict=True) if m != 0]
    return Contribution(island=number, delta=Mean()(used), weight=share, round=contributions[0].round)


def _fewest(first: Mixing, needed: int) -> int:
    """Contributions of which `first` makes `needed` vectors."""
    count = first.fewest
    while first.outputs(count) < needed:
        count += 1
    return count
