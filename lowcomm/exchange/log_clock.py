"""The clock of a process that follows a log: when entries came, and whether what waits makes a version by now.

It is the process's own, or the virtual one of a simulation; no time of it is history. What it finds becomes history by
a mark in the log, which says for everybody alike that what stands before it is a version.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lowcomm.exchange.fold import Fold


class LogClock:
    """tick_s: seconds of a simulation's virtual clock per tick; None: real processes, whose clock is monotonic."""

    def __init__(self, tick_s: float | None) -> None:
        self.tick_s = tick_s
        self.began_s = 0.0 if tick_s is not None else time.monotonic()
        self.came: dict[int, float] = {}
        """When entries came, by position: those that wait, and the one that made the last version."""
        self.looked = 0
        """Tick of the last look, in a simulation."""

    def now_s(self, tick: int) -> float:
        """After so many ticks, or now."""
        return time.monotonic() if self.tick_s is None else tick * self.tick_s

    def until(self, tick: int) -> list[float]:
        """Times to look at before what comes at `tick`: all since the last look, as nothing came in between."""
        if self.tick_s is None:
            return [time.monotonic()]
        return [between * self.tick_s for between in range(self.looked + 1, tick)]

    def saw(self, position: int, now_s: float) -> None:
        """An entry is there."""
        self.came.setdefault(position, now_s)

    def is_full(self, fold: Fold, now_s: float) -> bool:
        """Whether what waits makes a version."""
        return fold.count > 0 and fold.rules.rule.due(fold.moment(self.waited_s(now_s)))

    def waited_s(self, now_s: float) -> Callable[[int | None], float]:
        """Seconds since the entry at a position came; None: since the start."""
        return lambda at: now_s - (self.began_s if at is None else self.came.get(at, now_s))

    def forget(self, fold: Fold) -> None:
        """Times of entries that do not matter any more, to the fold that has read least."""
        first = min([fold.position, *(seat.position for seat in fold.room.here)])
        kept = {fold.room.stepped_at} | {at for at in self.came if at >= first}
        self.came = {at: s for at, s in self.came.items() if at in kept}

    def part(self) -> dict[str, Any]:
        """As JSON: a virtual clock goes on after a resume; another begins anew."""
        return {"came": [[at, s] for at, s in self.came.items()], "looked": self.looked}

    def load(self, values: dict[str, Any]) -> None:
        """Put back what `part` gave."""
        self.came, self.looked = dict(values["came"]), values["looked"]
