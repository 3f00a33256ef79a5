"""The schedule arrow: when islands exchange what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Action:
    """What happens around one inner step."""

    average_gradients: bool = False
    """Average the gradients of this step over the islands before the inner optimizer uses them (DDP)."""
    sync: tuple[int, ...] = ()
    """Fragments whose exchange starts right after this step, in the order in which all islands send them."""
    land: tuple[int, ...] = ()
    """Fragments whose exchange started earlier and is applied right after this step, before new ones start."""


class Schedule(ABC):
    """A pure function of the step, so that every island decides alike without talking."""

    fragments: int = 1
    """Number of fragments that the model is cut into."""
    alpha: float | None = None
    """Share of the local weights in what a delayed fragment becomes, the rest is global. None: global weights plus
    what was trained locally while the exchange was on its way, so that nothing is lost."""

    @property
    def overlaps(self) -> bool:
        """Whether exchanges run beside training and land later; otherwise training waits for each."""
        return False

    def own_share(self, islands: int) -> float:
        """Part of its own pseudo-gradient with which an island goes on while the exchange is on its way; 1: all of it.

        Only for `alpha` None.
        """
        return 1.0

    @abstractmethod
    def __call__(self, step: int, every: int) -> Action:
        """The action around inner step `step` (counted from 1) for a sync period of `every` inner steps."""

    def partition(self, sizes: Mapping[str, int]) -> list[list[str]]:
        """Parameter names by fragment, for names and element counts in the model's order; here one fragment."""
        return [list(sizes)]

    @abstractmethod
    def check(self, every: int, steps: int | None) -> None:
        """Raise ConfigError if it does not fit a run of `steps` inner steps (None: open-ended)."""
