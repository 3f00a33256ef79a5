"""The end of a run whose islands follow an ordered log: the one place where they wait for each other.

Every island appends a mark that it is done. The log ends where all marks are in it, or at the first "close", which an
island appends after `wait_s` in which nothing came: a place that all see alike. Then they compare the bits they hold.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from lowcomm.exchange.entry import Entry, Kind
from lowcomm.exchange.fold import Event, Fold
from lowcomm.exchange.log import Log
from lowcomm.transport import Transport
from lowcomm.types import DivergenceError, PayloadError

_POLL_S = 0.02


class LogEnd:
    """Ends an epoch of a log."""

    def __init__(self, log: Log, transport: Transport, wait_s: float) -> None:
        self.log, self.transport, self.wait_s = log, transport, wait_s

    def reach(self, folds: Sequence[Fold], run: int) -> tuple[dict[int, Event], list[str]]:
        """Bring all local islands to the end; returns what came, by position, and what happened, in words.

        Raises SyncError where the log fails, DivergenceError where islands hold other bits.
        """
        epochs = [fold.epoch for fold in folds]
        for local, epoch in enumerate(epochs):
            self._say(local, Kind.DONE, run, epoch)
        events, notes = dict[int, Event](), list[str]()
        for local, fold in enumerate(folds):
            last_s, closed = time.monotonic(), False
            while fold.epoch == epochs[local]:
                before = fold.position
                self._follow(local, fold, run, epochs[local], events)
                if fold.position > before:
                    last_s = time.monotonic()
                elif time.monotonic() - last_s > self.wait_s and not closed:
                    self._say(local, Kind.CLOSE, run, epochs[local])
                    closed = True
                else:
                    time.sleep(_POLL_S)
            missing = sorted(set(range(self.transport.islands)) - fold.ended_with)
            if missing and local == 0:
                notes.append(
                    f"islands {missing} were not done {self.wait_s:g} s after the last entry of the log: the run ended "
                    "without them"
                )
        for local, fold in enumerate(folds):
            self._say(local, Kind.DIGEST, run, epochs[local], fold.anchor.digest())
        notes += self._compare(folds[0], run, epochs[0])
        return events, notes

    def count(self, local: int, event: Event, data: bytes) -> None:
        """Count the bytes of an entry that came from another island."""
        if event.entry is None or event.entry.island != self.transport.local[local]:
            self.transport.received_bytes[local] += len(data)

    def _follow(self, local: int, fold: Fold, run: int, epoch: int, events: dict[int, Event]) -> None:
        for data in self.log.read(fold.position):
            event = fold.take(data, run)
            events[event.position] = event
            self.count(local, event, data)
            if fold.epoch != epoch:
                return

    def _say(self, local: int, kind: Kind, run: int, epoch: int, body: bytes = b"") -> None:
        island = self.transport.local[local]
        entry = Entry(kind=kind, island=island, run=run, epoch=epoch, body=body).pack()
        self.log.append(entry)
        self.transport.sent_bytes[local] += len(entry)

    def _compare(self, fold: Fold, run: int, epoch: int) -> list[str]:
        """Compare the digests of the islands that were done, without folding what comes after the end."""
        own, start_s = fold.anchor.digest(), time.monotonic()
        while True:
            heard = dict[int, bytes]()
            for data in self.log.read(fold.position):
                try:
                    entry = Entry.unpack(data)
                except PayloadError:
                    continue
                if (entry.kind, entry.run, entry.epoch) == (Kind.DIGEST, run, epoch):
                    heard[entry.island] = entry.body
            differing = sorted(k for k, value in heard.items() if value != own)
            if differing:
                raise DivergenceError(
                    f"at the end of the log islands {differing} hold other weights than island "
                    f"{self.transport.local[0]}. The run stops; resume from the last checkpoint."
                )
            silent = sorted(fold.ended_with - set(heard))
            if not silent:
                return []
            if time.monotonic() - start_s > self.wait_s:
                return [f"islands {silent} did not say which weights they hold at the end of the log"]
            time.sleep(_POLL_S)
