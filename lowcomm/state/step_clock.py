"""The clock of inner steps."""

from __future__ import annotations

import statistics
import time


class StepClock:
    """Times inner steps from the end of what follows one to the end of the next; the median leaves out what is rare."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()
        self._steps_s: list[float] = []

    def stepped(self) -> None:
        """An inner step is over."""
        self._steps_s.append(time.perf_counter() - self._begun_s)

    def begin(self) -> None:
        """The next inner step begins."""
        self._begun_s = time.perf_counter()

    def take_median_s(self) -> float:
        """Median of the steps since the last call."""
        median = statistics.median(self._steps_s) if self._steps_s else 0.0
        self._steps_s.clear()
        return median
