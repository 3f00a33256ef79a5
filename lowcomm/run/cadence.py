"""Starts one clock for all islands; times checkpoints, so that a failure never costs more than `every_s` of training.

Between two rounds a checkpoint needs all islands at the same sync, and their clocks differ. They agree in a gather of
16 bytes per island, which is rare: each one plans the next for when half of the time that is left will have passed, so
that there are some eight of them in `every_s` whatever a round takes. These bytes are not counted: how many there are
depends on the clock, and the bytes that a run counts are to be the same each time.

Inside a round that is longer than `every_s` each island saves by its own clock, as it does when a signal stops it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lowcomm.transport.base import Transport
from lowcomm.types import TransportError


class Cadence:
    """One process's view of it; `every_s` in seconds, None: never due. clock: seconds, monotonic."""

    def __init__(
        self, every_s: float | None, transport: Transport, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.every_s, self.transport, self.clock = every_s, transport, clock
        self.due = False
        """Whether the islands agreed to save at the sync that has just been committed."""
        self._parts = (0, 0)
        """Rounds done, and saves inside the round after them."""
        self._saved_s = self._met_s = clock()
        self._syncs, self._syncs_at_meeting, self._next_meeting = 0, 0, 1

    def synced(self, wait: Callable[[], None]) -> None:
        """A sync was committed, which all islands count alike; where they are to agree, they do it now.

        wait: until nothing else uses the transport.
        """
        self._syncs += 1
        if self.every_s is None or self._syncs < self._next_meeting:
            return
        wait()
        now = self.clock()
        passed = now - self._saved_s
        table = self._gather(passed, (now - self._met_s) / (self._syncs - self._syncs_at_meeting))
        self._met_s, self._syncs_at_meeting = now, self._syncs
        if table is None:
            self._next_meeting = self._syncs + 1
            return
        passed, round_s = table
        self.due = passed + round_s > self.every_s
        left_s = self.every_s if self.due else self.every_s - passed
        self._next_meeting = self._syncs + max(1, int(left_s / max(round_s, 1e-6) / 2))

    def part_is_due(self) -> bool:
        """Whether this island is to save inside the round, by its own clock."""
        return self.every_s is not None and self.clock() - self._saved_s >= self.every_s

    def next_part(self, rounds_done: int) -> int:
        """Number, from 1, of the save inside the round that follows `rounds_done`."""
        then, saves = self._parts
        self._parts = (rounds_done, saves + 1 if then == rounds_done else 1)
        return self._parts[1]

    def saved(self) -> None:
        """A checkpoint was saved, or could not be: the time starts again."""
        self._saved_s = self.clock()
        self.due = False

    def _gather(self, passed_s: float, round_s: float) -> tuple[float, float] | None:
        """The longest on any island; None where the islands could not be asked, which the next sync will report."""
        transport = self.transport
        counted = list(transport.sent_bytes), list(transport.received_bytes)
        row = torch.tensor([passed_s, round_s], dtype=torch.float64)
        try:
            longest = transport.gather([row] * len(transport.local)).amax(dim=0).tolist()
        except TransportError:
            return None
        finally:
            transport.sent_bytes[:], transport.received_bytes[:] = counted
        return longest[0], longest[1]


def agree_on_start(transport: Transport, base_s: float) -> float:
    """The time.perf_counter() at which the run's clock stood at 0; all islands take the largest `base_s` (seconds).

    It is counted from the middle of the moments at which two gathers in a row ended. One gather ends on each of two
    islands when the other's row arrives, up to a trip of the link apart; in the next one the order is reversed, so that
    the mean is the same moment on both if trips take equally long both ways. With more islands what is left is below
    the difference between their links' trips.
    """
    rows = [torch.tensor([base_s], dtype=torch.float64)] * len(transport.local)
    transport.gather(rows)
    first = time.perf_counter()
    table = transport.gather(rows)
    return (first + time.perf_counter()) / 2 - float(table.max())
