"""The schedule arrow: when islands exchange what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Action:
    """What happens around one inner step."""

    average_gradients: bool = False
    """Average the gradients of this step over the islands before the inner optimizer uses them (DDP)."""
    sync: tuple[int, ...] = ()
    """Fragments whose exchange starts right after this step, in the order in which all islands send them."""
    commit: tuple[int, ...] = ()
    """Fragments whose exchange started earlier and is applied right after this step, before new ones start."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How rounds go on from here; for schedules that adapt, decided anew after each one, else always the first."""

    every: int
    """Inner steps of this round (H)."""
    since: int = 0
    """Inner step after which this round began; a schedule counts from there."""
    level: int = 0
    """Number of the codec within `Graded`, 0 is the finest."""
    step_s: float | None = None
    """Seconds of an inner step."""
    exchange_s: float | None = None
    """Seconds of an exchange at level 0."""
    fixed_s: float | None = None
    """Part of them that does not depend on bytes."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of the round that just ended, agreed by all islands."""

    step: int
    """Inner steps done."""
    step_s: float
    """Seconds of an inner step on the slowest island."""
    exchange_s: float
    """Seconds of the exchange on the island that came last to it."""
    latency_s: float
    """Seconds of its roll call there."""
    sent_bytes: int
    """Bytes that an island sent in it, at most."""


class Schedule(ABC):
    """A pure function of the step, so that every island decides alike without talking."""

    fragments: int = 1
    """Number of fragments that the model is cut into."""
    alpha: float | None = None
    """Share of the local weights in what a delayed fragment becomes, the rest is global. None: global weights plus
    what was trained locally while the exchange was on its way, so that nothing is lost."""

    adapts: bool = False
    """Whether `next_pace` is asked after each round."""

    @property
    def overlaps(self) -> bool:
        """Whether exchanges run beside training and are committed later; otherwise training waits for each."""
        return False

    def own_share(self, islands: int) -> float:
        """Part of its own pseudo-gradient with which an island goes on while the exchange is on its way; 1: all of it.

        Only for `alpha` None.
        """
        return 1.0

    @abstractmethod
    def __call__(self, step: int, every: int) -> Action:
        """The action around inner step `step` (counted from 1) for a sync period of `every` inner steps."""

    def next_pace(self, pace: Pace, every: int, measured: Measured, level_bytes: Sequence[int]) -> Pace:
        """The next round's pace: a pure function of what all islands agree on.

        every: the configured period. level_bytes: payload of the model at each level of the codec.
        """
        return pace

    def partition(self, sizes: Mapping[str, int]) -> list[list[str]]:
        """Parameter names by fragment, for names and element counts in the model's order; here one fragment."""
        return [list(sizes)]

    @abstractmethod
    def check(self, every: int, steps: int | None) -> None:
        """Raise ConfigError if it does not fit a run of `steps` inner steps (None: open-ended)."""


def check_every(every: int, steps: int | None) -> None:
    """Raise ConfigError for a period (H) that does not fit a run of `steps` inner steps (None: open-ended)."""
    top = steps if steps is not None else "any"
    ok = every >= 1 and (steps is None or every <= steps)
    require(ok, "sync.every", every, f"1 <= every <= steps ({top})", "lower --sync.every or raise --steps")
