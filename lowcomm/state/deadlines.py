"""Deadlines: an exchange that had not arrived when it was due, how long training waited for it, and why.

Of exchanges without a deadline, for which training stands still, a long wait for a peer is told alike.

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
from typing import Literal

from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.types import Round, SyncError, TransportError, require

OnLate = Literal["wait", "stop"]
LATE_TOLERANCE_S = 0.5
"""A packet that is lost and sent again takes TCP 0.2 s and a round trip: no reason to end a run."""
BLOCKED_S = 1.0
"""Shortest wait for a peer that is told where exchanges have no deadline."""
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
    due: bool = True
    """Whether it had a deadline; False: training stood still for it all the time, longer than its own round took."""


def check_late(on_late: str, tolerance_s: float, prefix: str = "") -> None:
    """Raise ConfigError for a choice or a tolerance that there is not."""
    require(on_late in ("wait", "stop"), f"{prefix}on_late", on_late, "wait or stop", "wait")
    ok = 0 <= tolerance_s < float("inf")
    require(ok, f"{prefix}late_tolerance_s", tolerance_s, "a finite number from 0", f"{LATE_TOLERANCE_S} is usual")


class Deadlines:
    """Receives exchanges of one process, and keeps count of those that were late."""

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
        self._last_call = time.perf_counter()
        self._wants_stop = False

    def restart(self) -> None:
        """Count arrivals from now: the islands have just talked to each other."""
        self._last_call = time.perf_counter()

    @property
    def vote(self) -> bool | None:
        """This process's vote in the roll call to stop the run; None: nobody votes."""
        return None if self.on_late == "wait" else self._wants_stop

    def arrival_s(self, pending: Pending) -> float:
        """Seconds from the end of the last roll call to the beginning of this exchange."""
        return pending.began - self._last_call

    def called(self, pending: Pending, cohort: Cohort) -> None:
        """Note that a roll call is over. Raises SyncError where an island wants to stop for lateness."""
        self._last_call = pending.called
        pending.cohort = cohort
        if cohort.stopping:
            self._wants_stop = False
            raise SyncError(
                f"islands {cohort.stopping} waited for an exchange past its deadline for longer than "
                f"sync.late_tolerance_s = {self.tolerance_s:g}, and sync.on_late = 'stop': the run stops at the same "
                "place everywhere. Fix: a longer sync.schedule.delay, a smaller payload, a larger tolerance, or "
                "going on from what is saved with sync.on_late = 'wait'"
            )

    def receive(self, out: Outgoing, pending: Pending, island: int, due: bool) -> Arrived | None:
        """Wait for an exchange. Raises what it raised; if it was due and not there, listeners hear of that first."""
        start, there = time.perf_counter(), pending.future.done()
        try:
            arrived = pending.result()
        except SyncError as error:
            lost = isinstance(error, TransportError) or isinstance(error.__cause__, TransportError)
            if due and lost:
                cause = str(error).partition(". Nothing was")[0]
                self._report(out, time.perf_counter() - start, "dead peer", cause)
            raise
        if not due:
            self._tell_blocked(out, pending, island)
            return arrived
        if pending.beside:
            pending.needed_bytes_per_s = max(pending.sent_bytes) / max(start - pending.began, 1e-6)
            self.peak_bytes_per_s = max(pending.needed_bytes_per_s, self.peak_bytes_per_s or 0.0)
        if not there:
            waited_s = time.perf_counter() - start
            self._report(out, waited_s, *explain(pending, island, waited_s))
            self._wants_stop |= waited_s > self.tolerance_s
        return arrived

    def _tell_blocked(self, out: Outgoing, pending: Pending, island: int) -> None:
        """Report that training, which stands still in an exchange without a deadline, waited long for the last peer.

        Long: than this island's own round took, so that islands of somewhat unequal speed are no news.
        """
        arrivals_s = pending.cohort.arrivals_s if pending.cohort is not None and not pending.beside else []
        if not arrivals_s:
            return
        last = max(range(len(arrivals_s)), key=lambda k: arrivals_s[k])
        waited_s = arrivals_s[last] - arrivals_s[island]
        if waited_s > max(BLOCKED_S, arrivals_s[island]):
            detail = f"island {last} came to the roll call {waited_s:.3f} s after this one"
            self._report(out, waited_s, "slow peer", detail, due=False)

    def _report(self, out: Outgoing, waited_s: float, cause: Cause, detail: str, due: bool = True) -> None:
        self.misses += due
        self.waited_s += waited_s if due else 0.0
        late = Late(round=out.round, fragment=out.index, waited_s=waited_s, cause=cause, detail=detail, due=due)
        if not self.listeners:  # a loop that listens to nothing hears of it all the same
            logging.getLogger("lowcomm").warning(describe(late))
        for listener in self.listeners:
            listener(late)


def explain(pending: Pending, island: int, waited_s: float) -> tuple[Cause, str]:
    """Cause of a wait for this exchange on `island`: whatever made up the larger part of it; and what was measured."""
    arrivals_s = pending.cohort.arrivals_s if pending.cohort is not None else []
    last = max(range(len(arrivals_s)), key=lambda k: arrivals_s[k], default=island)
    roll_s = pending.exchange_s - pending.transfer_s
    peer_s = min(arrivals_s[last] - arrivals_s[island], roll_s) if arrivals_s else 0.0
    # a roll call is two small messages each way: what takes longer than two payloads on the same link is not the link
    stalled_s = max(0.0, roll_s - peer_s - 2 * pending.transfer_s)
    sent_bytes = max(pending.sent_bytes, default=0)
    rate = sent_bytes / max(pending.transfer_s, 1e-6)
    transfer = f"{sent_bytes} bytes sent in {pending.transfer_s:.3f} s, {rate * 8e-6:.3g} Mbit/s"
    if 2 * (peer_s + stalled_s) < waited_s:
        return "slow link", f"{transfer}; the last peer came {peer_s:.3f} s after this one"
    if peer_s >= stalled_s:
        return "slow peer", f"island {last} came to the roll call {peer_s:.3f} s after this one; {transfer}"
    return "slow peer", f"all had come, but the roll call took {stalled_s:.3f} s: a busy processor; {transfer}"


def describe(late: Late) -> str:
    """One line for people."""
    what = "missed its deadline, training waited" if late.due else "was waited for"
    return (
        f"fragment {late.fragment} of round {late.round.index} {what} {late.waited_s:.3f} s: "
        f"{late.cause} ({late.detail})"
    )
