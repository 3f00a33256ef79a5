"""The base of rules for islands that nobody vouches for: they see each contribution, and some may be anything."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from lowcomm.aggregate.base import Aggregate, Aggregator, Context
from lowcomm.aggregate.mean import Mean
from lowcomm.types import Contribution, Delta, Round, require

MAJORITY = 3
"""Fewest contributions of which one can be faulty and the others still outnumber it."""


class RobustRule(Aggregator):
    """What else islands average would go round such a rule: `sync/robust_conflicts.py` refuses it."""

    needs: ClassVar[Literal["sum", "each"]] = "each"

    @property
    def on_factors(self) -> bool:
        """Whether it judges LoRA adapters by the dW that they make, so that equal dW of unlike factors count alike."""
        return False

    @property
    def fewest(self) -> int:
        return MAJORITY

    def weights(self, tokens: Sequence[float]) -> list[float]:
        return Mean(by="uniform").weights(tokens)

    def check_islands(self, islands: int) -> None:
        legal = f"{type(self).__name__} needs {self.fewest} islands, there are {islands}"
        require(islands >= self.fewest, "sync.aggregator", type(self).__name__, legal, f"start {self.fewest}, or Mean")

    @abstractmethod
    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate: ...

    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        if not contributions:
            raise ValueError("no contribution to aggregate")
        alone = Round(index=contributions[0].round, step=0, fragments=(0,), seed=0)
        zeros = {name: t.new_zeros(()).expand_as(t) for name, t in contributions[0].delta.items()}
        return self.combine(contributions, Context(start=zeros, round=alone)).delta


def check_faulty(faulty: int) -> None:
    """Raise ConfigError unless f is a whole number from 0 on."""
    whole = isinstance(faulty, int) and faulty >= 0
    require(whole, "sync.aggregator.faulty", faulty, "a whole number, 0 or more", "1 is the usual guess")


def check_majority(rule: str, faulty: int, islands: int) -> None:
    """Raise ConfigError unless sound islands outnumber faulty ones: n >= 2 f + 1."""
    needed = 2 * faulty + 1
    most = max(0, (islands - 1) // 2)
    legal = f"{rule} needs 2 faulty + 1 = {needed} islands, there are {islands}"
    fix = f"set it to {most}{' or less' if most else ''}, or start {needed} islands"
    require(islands >= needed, "sync.aggregator.faulty", faulty, legal, fix)
