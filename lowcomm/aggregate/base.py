"""The aggregate arrow: contributions of the islands -> one Delta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lowcomm.types import Contribution, Delta, Round


@dataclass(frozen=True, kw_only=True)
class Combined:
    """What an aggregator makes of a round, to be committed together."""

    delta: Delta
    residuals: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By module: factors ([out, R], [R, in]) whose product every island adds to that module's frozen base weight."""
    error: float | None = None
    """How far the result is from what should have been aggregated, relative; None: exact, or not known."""
    notes: tuple[str, ...] = ()
    """Lines for the log of the round."""


class Aggregator(ABC):
    """Frozen dataclasses; `needs` lets the configuration refuse transports and codecs that do not fit."""

    needs: ClassVar[Literal["sum", "each"]]
    """"sum": a weighted sum made on the way will do; "each": it must see every contribution (robust rules)."""

    @property
    def bounded(self) -> bool:
        """Whether all islands weigh the same, whatever they trained on: client-level privacy rests on it."""
        return False

    @abstractmethod
    def weights(self, tokens: Sequence[float]) -> list[float]:
        """The weight of each island, in island order, summing to 1; `tokens` is 0 for one that is left out."""

    @abstractmethod
    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        """The aggregate of contributions in island order; their weights sum to 1."""

    def combine(self, contributions: Sequence[Contribution], start: Delta, round: Round) -> Combined:
        """The aggregate for rules that also look at the global weights (`start`) or change frozen ones."""
        return Combined(delta=self(contributions))

    def trains(self, name: str, round_index: int) -> bool:
        """Whether this parameter is trained in this round; the others rest on every island."""
        return True

    def check(self) -> None:  # noqa: B027  # nothing to check is a good default
        """Raise ConfigError for a setting out of range."""
