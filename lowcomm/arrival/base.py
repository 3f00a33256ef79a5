"""The interface of a mode: contributions arrive one by one; a rule says when they make a version, and what each counts.

    w <- outer(w, scale sum_k weight_k turn(Delta_k))

A rule is a frozen dataclass, and a pure function of what it is told: of the contributions that wait (`Waiting`), and of
the moment (`Moment`). Both exchanges that never wait use the same rules: islands that fold an ordered log by themselves
(`exchange/buffered.py`), and the committers of a store, who write what they chose into the commit (`store/policy.py`).
What changes tensors (`Turn`) is no judgement: everybody who folds does it, and it must give the same bits everywhere.
Times are on the committer's own clock, in seconds; no two clocks are ever compared.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from lowcomm.types import require

NORMS = 16
"""Norms of an island's latest contributions that are kept."""
Damping = Literal["polynomial", "constant"]


class Pace(NamedTuple):
    """How fast an island is, of late."""

    round_s: float
    """T_k: seconds from one contribution to the next; 0: not known yet."""
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    """Seconds per inner step."""

    def then(self, round_s: float, tokens: float, steps: int) -> Pace:
        """Moving mean after another round, half of it the new one; a round without time says nothing."""
        if round_s <= 0:
            return self
        new = Pace(round_s, tokens / round_s, round_s / steps if steps else self.step_s)
        return new if self.round_s == 0 else Pace(*(0.5 * (old + now) for old, now in zip(self, new, strict=True)))


UNKNOWN = Pace(0.0)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A contribution that is in no version yet."""

    author: str
    """The island: its number, or its incarnation."""
    tokens: float
    """Trained since its author's last contribution to the fragment."""
    steps: int
    """Inner steps, likewise."""
    staleness: int
    """tau: outer steps of the fragment since the version that the Delta was taken from."""
    norm: float = 0.0
    """L2 norm of the Delta before the codec."""
    waited_s: float = 0.0
    """Since it arrived."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a committer knows of a fragment."""

    here: tuple[Waiting, ...]
    """In the order in which they arrived."""
    members: frozenset[str]
    """Islands that train."""
    paces: Mapping[str, Pace] = field(default_factory=dict)
    """By island, of those that have contributed before."""
    norms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """L2 norms of each island's latest contributions (at most NORMS), without those that wait."""
    usual_norm: float = 0.0
    """Mean norm of the contributions of the last version."""
    waited_s: float = 0.0
    """Since the last version."""
    mean_square: float = 0.0
    """||D||^2 of the last version, where the rule needs it; 0: there is none yet."""
    mean_of: int = 0
    """How many contributions D was the mean of."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """What the rule's `remember` returned for the latest contribution."""

    def pace(self, author: str) -> Pace:
        """Of an island."""
        return self.paces.get(author, UNKNOWN)

    @property
    def missing(self) -> frozenset[str]:
        """Members of whom nothing waits."""
        return self.members - {one.author for one in self.here}


class Turn(ABC):
    """How a stale Delta is turned before it is added: a part of the fold, equal wherever it is folded."""

    @abstractmethod
    def __call__(self, delta: Sequence[Tensor], momentum: Sequence[Tensor | None], staleness: int) -> list[Tensor]:
        """New tensors; `delta` (fp32) stays as it is. momentum: the outer optimizer's, None before its first step."""

    @abstractmethod
    def check(self, name: str) -> None:
        """Raise ConfigError for a number out of range. name: of the field that it is in."""


@dataclass(frozen=True, kw_only=True)
class ArrivalRule(ABC):
    """A mode."""

    turn: Turn | None = None
    """How stale Deltas are turned before they are added; None: they are not."""
    even: bool = False
    """Whether islands take steps by their speed, H_k = sync.every speed_k / fastest, to contribute equally often."""

    by_clock: ClassVar[bool] = False
    """Whether `due` looks at times: then somebody must say in the log that the version is full."""
    keeps_latest: ClassVar[bool] = False
    """Whether a version counts the latest contribution of every island, also of those that have sent no new one."""

    remembers: ClassVar[bool] = False
    """Whether it has a memory of its own (`remember`)."""
    needs_square: ClassVar[bool] = False
    """Whether it looks at the norm of the last version's Delta."""

    @property
    def sets_steps(self) -> bool:
        """Whether islands of unequal speed take unequal numbers of inner steps (`steps`)."""
        return self.even

    @abstractmethod
    def due(self, now: Moment) -> bool:
        """Whether what waits (at least one) becomes a version."""

    @abstractmethod
    def weight(self, one: Waiting, now: Moment) -> float:
        """What a contribution counts, as known when it arrives: 0 or more."""

    @abstractmethod
    def scale(self, used: Sequence[Waiting], total: float) -> float:
        """Factor on the weighted sum. total: the sum of weights, above 0."""

    def steps(self, every: int, author: str, now: Moment) -> int:
        """Inner steps of an island's next round: HALoS's dynamic steps (arXiv 2506.04531). every: `sync.every`."""
        known = [p.step_s for p in now.paces.values() if p.step_s > 0]
        mine = now.pace(author).step_s
        return every if not self.even or mine <= 0 else max(1, round(every * min(known) / mine))

    def remember(self, memory: Mapping[str, Any], one: Waiting, took_s: float, now: Moment) -> dict[str, Any]:
        """The rule's memory, as JSON, after a contribution, before it is asked whether a version is due.

        memory: what the last call returned, empty at first, not to be changed; took_s: seconds since the author's last
        contribution, by its own clock.
        """
        return {}

    def check(self, name: str, islands: int | None) -> None:
        """Raise ConfigError for a number out of range. name: of the field that it is in; islands: None: any number."""
        if self.turn is not None:
            self.turn.check(f"{name}.turn")


def damping(kind: Damping, staleness: int) -> float:
    """d(tau): 1/sqrt(1 + tau), or 1."""
    return 1.0 if kind == "constant" else 1 / math.sqrt(1 + staleness)


def check_damping(name: str, kind: str) -> None:
    """Raise ConfigError for a kind that there is not."""
    legal = ("polynomial", "constant")
    require(kind in legal, f"{name}.staleness", kind, f"one of {legal}", "take one")


def check_weights(name: str, kind: str) -> None:
    """Raise ConfigError for a kind that there is not."""
    legal = ("identical", "unbiased")
    require(kind in legal, f"{name}.weights", kind, f"one of {legal}", "take one")


def check_size(name: str, size: int) -> None:
    """Raise ConfigError for a number of contributions out of range."""
    require(1 <= size <= 4096, f"{name}.size", size, "1 to 4096", "half of the islands is usual")
