"""Deadlines: an exchange that had not arrived when it was due, how long training waited for it, and why.

Each island says in the roll call how long after the last one it came to this one. A roll call ends everywhere within
one trip of the link, so these seconds compare without comparing clocks, and they tell a late peer from a slow link:
the payload crosses after the roll call and is timed by itself. A peer that stops in the middle of a payload looks like
a slow link from here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowcomm.round.exchange import Exchanged, RollCall, call_roll
from lowcomm.round.flight import Flight
from lowcomm.types import Round, SyncError, TransportError, require

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD

OnLate = Literal["wait", "stop"]
LATE_TOLERANCE_S = 0.5
"""A packet that is lost and sent again takes TCP 0.2 s and a round trip: no reason to end a run."""
Cause = Literal["slow link", "slow peer", "dead peer"]


@dataclass(frozen=True, kw_only=True)
class Late:
    """An exchange that had not arrived when it was due."""

    round: Round
    fragment: int
    waited_s: float
    """Seconds that training waited after the deadline."""
    cause: Cause
    detail: str
    """What was measured, on one line."""


def check_late(on_late: str, tolerance_s: float, prefix: str = "") -> None:
    """Raise ConfigError for a choice or a tolerance that there is not."""
    require(on_late in ("wait", "stop"), f"{prefix}on_late", on_late, "wait or stop", "wait")
    ok = 0 <= tolerance_s < float("inf")
    require(ok, f"{prefix}late_tolerance_s", tolerance_s, "a finite number from 0", f"{LATE_TOLERANCE_S} is usual")


class Deadlines:
    """Lands exchanges of one process, and keeps count of those that were late."""

    def __init__(self, on_late: OnLate, tolerance_s: float = LATE_TOLERANCE_S) -> None:
        check_late(on_late, tolerance_s)
        self.on_late: OnLate = on_late
        self.tolerance_s = tolerance_s
        """Longest wait after which an island does not want to stop."""
        self.misses = 0
        self.waited_s = 0.0
        self.peak_bytes_per_s: float | None = None
        """Largest rate that a link needs so that no exchange is late: bytes sent over the time until it was due."""
        self.listeners: list[Callable[[Late], None]] = []
        self._last_roll = time.perf_counter()
        self._wants_stop = False

    def restart(self) -> None:
        """Count arrivals from now: the islands have just talked to each other."""
        self._last_roll = time.perf_counter()

    def call_roll(self, sync: LocalSGD, flight: Flight) -> RollCall:
        """The roll call of an exchange that has begun. Raises SyncError where an island wants to stop for lateness."""
        stop = None if self.on_late == "wait" else self._wants_stop
        arrival_s, start = flight.began - self._last_roll, time.perf_counter()
        flight.roll = roll = call_roll(
            sync.transport, sync.aggregator, flight.round, flight.unsynced, flight.norms, sync.quorum, arrival_s, stop,
            flight.expected, flight.ranks, sync.ranks,
        )  # fmt: skip
        self._last_roll = flight.rolled = time.perf_counter()
        flight.latency_s = flight.rolled - start
        if roll.stopping:
            self._wants_stop = False
            raise SyncError(
                f"islands {roll.stopping} waited for an exchange past its deadline for longer than "
                f"sync.late_tolerance_s = {self.tolerance_s:g}, and sync.on_late = 'stop': the run stops at the same "
                "place everywhere. Fix: a longer sync.schedule.delay, a smaller payload, a larger tolerance, or "
                "going on from what is saved with sync.on_late = 'wait'"
            )
        return roll

    def receive(self, sync: LocalSGD, flight: Flight, delayed: bool) -> Exchanged:
        """Wait for a flight. Raises what its exchange raised; if it was due and not there, that is told first."""
        start, there = time.perf_counter(), flight.future.done()
        due = delayed and flight.round.step < sync.step and flight.fragment in sync.action_at(sync.step).land
        try:
            done = flight.result()
        except SyncError as error:
            lost = isinstance(error, TransportError) or isinstance(error.__cause__, TransportError)
            if due and lost:
                self._tell(flight, time.perf_counter() - start, "dead peer", str(error).partition(". Nothing was")[0])
            raise
        if not due:
            return done
        if flight.beside:
            flight.needed_bytes_per_s = max(flight.sent_bytes) / max(start - flight.began, 1e-6)
            self.peak_bytes_per_s = max(flight.needed_bytes_per_s, self.peak_bytes_per_s or 0.0)
        if not there:
            waited_s = time.perf_counter() - start
            self._tell(flight, waited_s, *explain(flight, sync.transport.local[0], waited_s))
            self._wants_stop |= waited_s > self.tolerance_s
        return done

    def _tell(self, flight: Flight, waited_s: float, cause: Cause, detail: str) -> None:
        self.misses += 1
        self.waited_s += waited_s
        late = Late(round=flight.round, fragment=flight.fragment, waited_s=waited_s, cause=cause, detail=detail)
        if not self.listeners:  # a loop that listens to nothing hears of it all the same
            logging.getLogger("lowcomm").warning(describe(late))
        for listener in self.listeners:
            listener(late)


def explain(flight: Flight, island: int, waited_s: float) -> tuple[Cause, str]:
    """Cause of a wait for this flight on `island`: whatever made up the larger part of it; and what was measured."""
    arrivals_s = flight.roll.arrivals_s if flight.roll is not None else []
    last = max(range(len(arrivals_s)), key=lambda k: arrivals_s[k], default=island)
    roll_s = flight.exchange_s - flight.transfer_s
    peer_s = min(arrivals_s[last] - arrivals_s[island], roll_s) if arrivals_s else 0.0
    # a roll call is two small messages each way: what takes longer than two payloads on the same link is not the link
    stalled_s = max(0.0, roll_s - peer_s - 2 * flight.transfer_s)
    sent_bytes = max(flight.sent_bytes, default=0)
    rate = sent_bytes / max(flight.transfer_s, 1e-6)
    transfer = f"{sent_bytes} bytes sent in {flight.transfer_s:.3f} s, {rate * 8e-6:.3g} Mbit/s"
    if 2 * (peer_s + stalled_s) < waited_s:
        return "slow link", f"{transfer}; the last peer came {peer_s:.3f} s after this one"
    if peer_s >= stalled_s:
        return "slow peer", f"island {last} came to the roll call {peer_s:.3f} s after this one; {transfer}"
    return "slow peer", f"all had come, but the roll call took {stalled_s:.3f} s: a busy processor; {transfer}"


def describe(late: Late) -> str:
    """One line for people."""
    return (
        f"fragment {late.fragment} of round {late.round.index} missed its deadline, training waited "
        f"{late.waited_s:.3f} s: {late.cause} ({late.detail})"
    )
