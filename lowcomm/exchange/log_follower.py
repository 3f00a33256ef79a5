"""The exchange of islands that contribute to an ordered log and follow it, each at its own pace."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.arrival import ArrivalRule
from lowcomm.codec import State
from lowcomm.exchange.base import Exchange, ExchangeParts
from lowcomm.exchange.entry import Entry, Kind
from lowcomm.exchange.fold import Event, Fold, FoldRules
from lowcomm.exchange.log import Log, MemoryLog
from lowcomm.exchange.log_clock import LogClock
from lowcomm.exchange.log_end import LogEnd
from lowcomm.exchange.log_view import LogView
from lowcomm.exchange.worker import carry_out
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.types import Part, PayloadError, Round, SyncError


class LogFollower(Exchange):
    """Appends Deltas of local islands that have done their steps, and lets their anchors follow the log."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"
    hears_all: ClassVar[bool] = False
    closes: ClassVar[bool] = True

    def __init__(
        self,
        parts: ExchangeParts,
        log: Log,
        *,
        rule: ArrivalRule,
        max_staleness: int | None,
        speeds: Sequence[float],
        wait_s: float,
        own: bool = False,
        tick_s: float | None = None,
    ) -> None:
        self.parts, self.log, self.speeds = parts, log, speeds
        transport = parts.transport
        self.rules = FoldRules(
            codec=parts.codec, islands=transport.islands, rule=rule, max_staleness=max_staleness,
            round_seed=parts.round_seed,
        )  # fmt: skip
        self.folds = [Fold(anchor, self.rules) for anchor in parts.anchors[0]]
        """By local island."""
        self.views = [LogView(f, k, own=own) for f, k in zip(self.folds, transport.local, strict=True)]
        """What each of them trains from."""
        self.clock = LogClock(tick_s)
        self.end = LogEnd(log, transport, wait_s)
        self.departed = [0 for _ in self.folds]
        """Inner steps of each local island that its contributions hold."""
        self.sequences = [0 for _ in self.folds]
        """Contributions of each local island."""
        self.wanted = [parts.every for _ in self.folds]
        """Inner steps of the round that each local island is in."""
        self.since_s = [self.clock.began_s for _ in self.folds]
        """When the last contribution of each local island departed."""
        self.reported = 0
        """Position up to which reports have told the order of the log."""
        self._resumed = False
        self._unread: SyncError | None = None

    def due(self, step: int, scheduled: tuple[int, ...]) -> tuple[int, ...]:
        return (0,) if self._due(step, last=False) else ()

    def rests(self, island: int, step: int) -> bool:
        return _steps(self.speeds[island], step + 1) == _steps(self.speeds[island], step)

    def start(self, out: Outgoing) -> Pending:
        pending = Pending()
        carry_out(pending, lambda at: self._exchange(out, at))
        return pending

    def _due(self, step: int, last: bool) -> list[int]:
        """Local islands that contribute after inner step `step`; last: all that have trained."""
        done = [_steps(self.speeds[k], step) for k in self.parts.transport.local]
        return [i for i, steps in enumerate(done) if steps - self.departed[i] >= (1 if last else self.wanted[i])]

    def _exchange(self, out: Outgoing, pending: Pending) -> Arrived:
        transport, last = self.parts.transport, out.round.last
        self._check_readable(out.round.run)
        before, states = list(transport.sent_bytes), list(out.states)
        due, bad = self._due(out.round.step, last), dict[int, str]()
        readers = list(range(len(self.folds))) if last else due
        events: dict[int, Event] = {}
        if self.rules.rule.by_clock:
            events = self._close_what_was_full(readers[0], out.round.step, out.round.run)
        for i in due:
            states[i] = self._contribute(out, i, bad)
        pending.called = time.perf_counter()
        came, notes = self._adopt(readers, out.round)
        events |= came
        if isinstance(self.log, MemoryLog):
            self.log.drop(min(fold.position for fold in self.folds))
        pending.sent_bytes = [now - then for now, then in zip(transport.sent_bytes, before, strict=True)]
        new = [events[p] for p in sorted(events) if p >= self.reported]
        self.reported = max([self.reported, *(event.position + 1 for event in new)])
        cohort = pending.cohort = self._cohort(out, new, due, bad)
        return Arrived(
            cohort=cohort, updates=[], states=states, adopters=tuple(readers), notes=(*map(str, new), *notes)
        )

    def _close_what_was_full(self, local: int, tick: int, run: int) -> dict[int, Event]:
        """Before a local island contributes: say in the log that a version was full by now. Returns what came."""
        clock, fold = self.clock, self.folds[local]
        with self.views[local].looking():
            events, _ = self._follow([local], run)
            for now_s in clock.until(tick):
                if self._unread is None and clock.is_full(fold, now_s):
                    clock.saw(self._say_full(local, run), now_s)
                    events |= self._follow([local], run)[0]
        clock.looked = tick
        return events

    def _close_what_is_full(self, readers: Sequence[int], now: Round) -> tuple[dict[int, Event], list[str]]:
        """After local islands have contributed. What departed can't be taken back: it does not raise."""
        now_s, first = self.clock.now_s(now.step), readers[0]
        if not self.clock.is_full(self.folds[first], now_s):
            return {}, []
        try:
            self.clock.saw(self._say_full(first, now.run), now_s)
        except SyncError as error:
            return {}, [f"{error}: the next contribution says that the version is full"]
        return self._follow(readers, now.run)

    def _say_full(self, local: int, run: int) -> int:
        """Append the mark; returns its position. Raises SyncError."""
        version, island = self.folds[local].anchor.version, self.parts.transport.local[local]
        entry = Entry(kind=Kind.FULL, island=island, run=run, base_version=version).pack()
        self.parts.transport.sent_bytes[local] += len(entry)
        return self.log.append(entry)

    def _adopt(self, readers: Sequence[int], now: Round) -> tuple[dict[int, Event], list[str]]:
        """Let local islands follow the log and go on from where it leads; all to its end in the last round."""
        with ExitStack() as views:
            for i in readers:
                views.enter_context(self.views[i].adopting())
            if now.last:
                return self.end.reach(self.folds, now.run)
            events, notes = self._follow(readers, now.run)
            if self.rules.rule.by_clock and not notes:
                more, notes = self._close_what_is_full(readers, now)
                events |= more
                self.clock.forget(min(self.folds, key=lambda fold: fold.position))
        if self.rules.rule.sets_steps:
            for i in readers:
                author = str(self.parts.transport.local[i])
                self.wanted[i] = self.rules.rule.steps(self.parts.every, author, self.folds[i].moment())
        return events, notes

    def _check_readable(self, run: int) -> None:
        """Raise SyncError, before anything departs, if the log still can't be read; once after a resume look for
        contributions that departed after the checkpoint."""
        if self._unread is not None:
            next(self.log.read(self.folds[0].position), None)
            self._unread = None
        if self._resumed:
            for i, island in enumerate(self.parts.transport.local):
                for data in self.log.read(self.folds[i].position):
                    self.sequences[i] = max(self.sequences[i], _number_after(data, run, island))
            self._resumed = False

    def _contribute(self, out: Outgoing, local: int, bad: dict[int, str]) -> State:
        """Encode and append a Delta; returns the codec's state after it. What can't be encoded goes without a body."""
        transport, tick, now_s = self.parts.transport, out.round.step, self.clock.now_s(out.round.step)
        island, sequence, norm = transport.local[local], self.sequences[local], out.norms[local]
        now = self.rules.round_of(out.round.run, island, sequence)
        body, state = b"", out.states[local]
        try:
            codec = self.parts.codec.at(now)
            payload, state = codec.encode(out.fragment.views(out.deltas[local]), out.states[local], now)
            body = payload.data.cpu().numpy().tobytes()
        except PayloadError as error:
            bad[island], norm = str(error), math.inf
        entry = Entry(
            kind=Kind.CONTRIBUTION, island=island, run=out.round.run, sequence=sequence,
            base_version=self.views[local].version, tokens=out.unsynced[local], norm=norm, body=body,
            steps=_steps(self.speeds[island], tick) - self.departed[local], took_s=now_s - self.since_s[local],
        ).pack()  # fmt: skip
        self.clock.saw(self.log.append(entry), now_s)
        transport.sent_bytes[local] += len(entry)
        self.sequences[local] += 1
        self.departed[local], self.since_s[local] = _steps(self.speeds[island], tick), now_s
        if math.isfinite(norm):
            self.views[local].departed(sequence, out.deltas[local])
        return state

    def _follow(self, readers: Sequence[int], run: int) -> tuple[dict[int, Event], list[str]]:
        """Let the anchors of these local islands follow the log to its end; returns what came, by position.

        What departed can't be taken back: an entry that can't be read now is folded when it can.
        """
        events: dict[int, Event] = {}
        try:
            for i in readers:
                fold = self.folds[i]
                for data in self.log.read(fold.position):
                    event = fold.take(data, run)
                    events[event.position] = event
                    if self.clock.tick_s is None:
                        self.clock.saw(event.position, time.monotonic())
                    self.end.count(i, event, data)
        except SyncError as error:
            self._unread = error
            return events, [f"{error}: it is folded once it can be read"]
        return events, []

    def _cohort(self, out: Outgoing, new: Sequence[Event], due: Sequence[int], bad: Mapping[int, str]) -> Cohort:
        islands = self.parts.transport.islands
        weights, norms, tokens = [0.0] * islands, [0.0] * islands, [0.0] * islands
        dropped = dict(bad)
        for event in new:
            entry = event.entry
            if entry is None or entry.island >= islands or entry.kind != Kind.CONTRIBUTION:
                continue
            weights[entry.island] += event.weight
            norms[entry.island] = entry.norm
            tokens[entry.island] += entry.tokens
            if event.why is not None:
                dropped.setdefault(entry.island, event.why)
        for i in due:
            norms[self.parts.transport.local[i]] = out.norms[i]
        total = sum(weights)
        shares = [w / total for w in weights] if total else weights
        return Cohort(weights=shares, tokens=tokens, dropped=dropped, norms=norms)

    def global_part(self) -> Part:
        """Of a simulation the entries that an island has not read yet."""
        if not isinstance(self.log, MemoryLog):
            return {}, {}
        joined = torch.frombuffer(bytearray(b"".join(self.log.entries) or b"\0"), dtype=torch.uint8)
        sizes = [len(entry) for entry in self.log.entries]
        values = {"sizes": sizes, "first": self.log.first, "told": self.reported, "clock": self.clock.part()}
        return {"buffered.log": joined}, {"buffered": values}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if isinstance(self.log, MemoryLog):
            saved, start = values["buffered"], 0
            joined = tensors["buffered.log"].cpu().numpy().tobytes()
            self.log.entries.clear()
            for size in saved["sizes"]:
                self.log.entries.append(joined[start : start + size])
                start += size
            self.log.first, self.reported = saved["first"], saved["told"]
            self.clock.load(saved["clock"])

    def island_part(self, local: int) -> Part:
        tensors, values = self.folds[local].part()
        held, view = self.views[local].part()
        mine = {
            "departed": self.departed[local], "sequence": self.sequences[local], "wanted": self.wanted[local],
            "since_s": self.since_s[local], "view": view,
        }  # fmt: skip
        return {**tensors, **held}, {"buffered": {**values, **mine}}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        saved = values["buffered"]
        self.folds[local].load(tensors, saved)
        self.views[local].load(tensors, saved["view"])
        self.departed[local], self.sequences[local] = saved["departed"], saved["sequence"]
        self.wanted[local] = saved["wanted"]
        if self.clock.tick_s is not None:
            self.since_s[local] = saved["since_s"]
        if not isinstance(self.log, MemoryLog):
            self._resumed, self.reported = True, saved["position"]


def _steps(speed: float, tick: int) -> int:
    """Inner steps that an island has taken after so many ticks."""
    return math.floor(tick * speed)


def _number_after(data: bytes, run: int, island: int) -> int:
    """The sequence number after that of a contribution of this island; 0 for anything else."""
    try:
        entry = Entry.unpack(data)
    except PayloadError:
        return 0
    mine = entry.kind == Kind.CONTRIBUTION and entry.run == run and entry.island == island
    return entry.sequence + 1 if mine else 0
