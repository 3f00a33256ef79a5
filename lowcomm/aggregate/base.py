"""The aggregate arrow: contributions of the islands -> one Delta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from lowcomm.types import Contribution, Delta


class Aggregator(ABC):
    """Frozen dataclasses; `needs` lets the configuration refuse transports and codecs that do not fit."""

    needs: ClassVar[Literal["sum", "each"]]
    """"sum": a weighted sum made on the way will do; "each": it must see every contribution (robust rules)."""

    @abstractmethod
    def weights(self, tokens: Sequence[float]) -> list[float]:
        """The weight of each island, in island order, summing to 1; `tokens` is 0 for one that is left out."""

    @abstractmethod
    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        """The aggregate of contributions in island order; their weights sum to 1."""
