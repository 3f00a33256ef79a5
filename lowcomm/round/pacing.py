"""What an adapting schedule is told, and how all islands come to the same decision."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from lowcomm.round.flight import Flight
from lowcomm.schedule import Measured, Pace

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


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


def decide(sync: LocalSGD, flight: Flight) -> Pace:
    """The pace of the next round, from every island's measurements of the last one: 32 bytes per island.

    The slowest island sets the step; the island that came last to the exchange waited for no other, so that its time,
    the shortest, is the link's.
    """
    step_s = sync.step_clock.take_median_s() / len(sync.replicas)  # islands of one process take turns
    sent = [now - before for now, (before, _) in zip(sync.transport.sent_bytes, flight.bytes_before, strict=True)]
    fragment = sync.fragments[flight.fragment]
    level_bytes = sync.codec.level_bytes(fragment.views(fragment.weights)) or [1]
    own = [torch.tensor([-step_s, flight.exchange_s, flight.latency_s, -float(b)], dtype=torch.float64) for b in sent]
    rows = [sync.transport.inside(row).amin(dim=0) for row in own]  # of an island's ranks, as of the islands
    level_bytes = sync.transport.inside(torch.tensor(level_bytes)).amax(dim=0).tolist()
    table = sync.transport.gather(rows)
    measured = Measured(
        step=sync.step,
        step_s=float(-table[:, 0].min()),
        exchange_s=float(table[:, 1].min()),
        latency_s=float(table[:, 2].min()),
        sent_bytes=int(-table[:, 3].min()),
    )
    return sync.schedule.next_pace(sync.pace, sync.every, measured, level_bytes)
