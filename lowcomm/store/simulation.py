"""Islands of one process on a virtual clock: the same members over a store in memory, one turn at a time.

A turn is whatever an island does until it lets others go on. The order of turns is logged; replaying a log gives the
same bits, as clock and randomness of every island are handed in.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Turn(NamedTuple):
    """One event."""

    at_s: float
    island: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a simulation leaves."""

    turns: tuple[Turn, ...]
    """All of them, in order."""
    ended: bool
    """Whether every island left."""


class Simulation:
    """The virtual clock, and who is next on it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        """Monotonic seconds, for `Surroundings`."""
        return self.now_s

    def run(self, islands: Sequence[Callable[[], float | None]], most_turns: int = 1_000_000) -> Outcome:
        """Let islands take turns; each says after how many seconds it wants its next one, or None: it has left."""
        queue = [Turn(self.now_s, k) for k in range(len(islands))]
        heapq.heapify(queue)
        turns: list[Turn] = []
        while queue and len(turns) < most_turns:
            turn = heapq.heappop(queue)
            self.now_s = max(self.now_s, turn.at_s)
            turns.append(Turn(self.now_s, turn.island))
            after_s = islands[turn.island]()
            if after_s is not None:
                heapq.heappush(queue, Turn(self.now_s + after_s, turn.island))
        return Outcome(turns=tuple(turns), ended=not queue)

    def replay(self, islands: Sequence[Callable[[], float | None]], turns: Sequence[Turn]) -> Outcome:
        """The turns of a log, whatever the islands ask for."""
        left: set[int] = set()
        for turn in turns:
            self.now_s = turn.at_s
            if islands[turn.island]() is None:
                left.add(turn.island)
        return Outcome(turns=tuple(turns), ended=len(left) == len(islands))
