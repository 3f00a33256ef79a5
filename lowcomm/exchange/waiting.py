"""The contributions of a log that wait for a version, and how fast their authors are: a function of the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from lowcomm.arrival import Moment, Pace, Waiting
from lowcomm.arrival.base import NORMS


class Seat(NamedTuple):
    """Where a contribution that waits stands in the log."""

    position: int
    sequence: int
    one: Waiting
    weight: float


class Room:
    """What waits for the next outer step."""

    def __init__(self, islands: int) -> None:
        self.islands = islands
        self.here: list[Seat] = []
        self.paces: dict[str, Pace] = {}
        self.norms: dict[str, list[float]] = {}
        self.usual_norm = 0.0
        self.mean_square, self.mean_of = 0.0, 0
        """||D||^2 of the last version, where the rule needs it, and how many contributions it had."""
        self.memory: dict[str, Any] = {}
        """The rule's own."""
        self.stepped_at: int | None = None
        """Position of the entry that made the last version; None: there is none yet."""

    @property
    def used(self) -> tuple[Waiting, ...]:
        """What waits, in the order of the log."""
        return tuple(seat.one for seat in self.here)

    @property
    def total(self) -> float:
        """Sum of weights."""
        return sum(seat.weight for seat in self.here)

    def learn(self, one: Waiting, took_s: float) -> None:
        """How long an island's round took."""
        if took_s > 0:
            self.paces[one.author] = self.paces.get(one.author, Pace(0.0)).then(took_s, one.tokens, one.steps)

    def add(self, position: int, sequence: int, one: Waiting, weight: float) -> None:
        """Let a contribution wait."""
        self.here.append(Seat(position, sequence, one, weight))

    def leave(self, position: int) -> None:
        """All make a version, because of the entry at `position`."""
        for one in self.used:
            self.norms[one.author] = [*self.norms.get(one.author, []), one.norm][-NORMS:]
        self.usual_norm = sum(one.norm for one in self.used) / max(1, len(self.here))
        self.here, self.stepped_at = [], position

    def sequences(self, island: int) -> set[int]:
        """Of the contributions of an island that wait."""
        return {seat.sequence for seat in self.here if seat.one.author == str(island)}

    def moment(self, done: Collection[int], waited_s: Callable[[int | None], float]) -> Moment:
        """What a rule is told. done: islands that train no more."""
        here = (dataclasses.replace(seat.one, waited_s=waited_s(seat.position)) for seat in self.here)
        members = frozenset(str(k) for k in range(self.islands) if k not in done)
        return Moment(
            here=tuple(here), members=members, paces=dict(self.paces), norms=self.norms, usual_norm=self.usual_norm,
            waited_s=waited_s(self.stepped_at), mean_square=self.mean_square, mean_of=self.mean_of,
            memory=self.memory,
        )  # fmt: skip

    def part(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "here": [[s.position, s.sequence, dataclasses.asdict(s.one), s.weight] for s in self.here],
            "paces": {k: list(pace) for k, pace in self.paces.items()},
            "norms": self.norms,
            "usual_norm": self.usual_norm,
            "stepped_at": self.stepped_at,
            "memory": self.memory,
            "mean": [self.mean_square, self.mean_of],
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Put back what `part` gave."""
        self.here = [Seat(at, sequence, Waiting(**one), weight) for at, sequence, one, weight in values["here"]]
        self.paces = {k: Pace(*pace) for k, pace in values["paces"].items()}
        self.norms = {k: list(norms) for k, norms in values["norms"].items()}
        self.usual_norm, self.stepped_at = values["usual_norm"], values["stepped_at"]
        self.mean_square, self.mean_of = values.get("mean", [0.0, 0])
        self.memory = dict(values.get("memory", {}))
