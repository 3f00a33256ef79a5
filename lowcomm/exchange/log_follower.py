"""The exchange of islands that contribute to an ordered log and follow it, each at its own pace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.codec import State
from lowcomm.exchange.base import Exchange, ExchangeParts
from lowcomm.exchange.entry import Entry, Kind
from lowcomm.exchange.fold import Event, Fold, FoldRules
from lowcomm.exchange.log import Log, MemoryLog
from lowcomm.exchange.log_end import LogEnd
from lowcomm.exchange.worker import carry_out
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.types import Part, PayloadError, SyncError


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
        size: int,
        damping: Callable[[int], float],
        max_staleness: int | None,
        speeds: Sequence[float],
        wait_s: float,
    ) -> None:
        self.parts, self.log, self.speeds = parts, log, speeds
        transport = parts.transport
        self.rules = FoldRules(
            codec=parts.codec, islands=transport.islands, size=size, damping=damping, max_staleness=max_staleness,
            round_seed=parts.round_seed,
        )  # fmt: skip
        self.folds = [Fold(anchor, self.rules) for anchor in parts.anchors[0]]
        """By local island."""
        self.end = LogEnd(log, transport, wait_s)
        self.departed = [0 for _ in self.folds]
        """Inner steps of each local island that its contributions hold."""
        self.sequences = [0 for _ in self.folds]
        """Contributions of each local island."""
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
        wanted = 1 if last else self.parts.every
        done = [_steps(self.speeds[k], step) for k in self.parts.transport.local]
        return [i for i, steps in enumerate(done) if steps - self.departed[i] >= wanted]

    def _exchange(self, out: Outgoing, pending: Pending) -> Arrived:
        transport, last = self.parts.transport, out.round.last
        self._check_readable(out.round.run)
        before, states = list(transport.sent_bytes), list(out.states)
        due, bad = self._due(out.round.step, last), dict[int, str]()
        for i in due:
            states[i] = self._contribute(out, i, bad)
        pending.called = time.perf_counter()
        readers = list(range(len(self.folds))) if last else due
        events, notes = self.end.reach(self.folds, out.round.run) if last else self._follow(readers, out.round.run)
        if isinstance(self.log, MemoryLog):
            self.log.drop(min(fold.position for fold in self.folds))
        pending.sent_bytes = [now - then for now, then in zip(transport.sent_bytes, before, strict=True)]
        new = [events[p] for p in sorted(events) if p >= self.reported]
        self.reported = max([self.reported, *(event.position + 1 for event in new)])
        cohort = pending.cohort = self._cohort(out, new, due, bad)
        return Arrived(
            cohort=cohort, updates=[], states=states, adopters=tuple(readers), notes=(*map(str, new), *notes)
        )

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
        transport = self.parts.transport
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
            base_version=out.versions[local], tokens=out.unsynced[local], norm=norm, body=body,
        ).pack()  # fmt: skip
        self.log.append(entry)
        transport.sent_bytes[local] += len(entry)
        self.sequences[local] += 1
        self.departed[local] = _steps(self.speeds[island], out.round.step)
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
        return {"buffered.log": joined}, {"buffered": {"sizes": sizes, "first": self.log.first, "told": self.reported}}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if isinstance(self.log, MemoryLog):
            saved, start = values["buffered"], 0
            joined = tensors["buffered.log"].cpu().numpy().tobytes()
            self.log.entries.clear()
            for size in saved["sizes"]:
                self.log.entries.append(joined[start : start + size])
                start += size
            self.log.first, self.reported = saved["first"], saved["told"]

    def island_part(self, local: int) -> Part:
        tensors, values = self.folds[local].part()
        mine = {"departed": self.departed[local], "sequence": self.sequences[local]}
        return tensors, {"buffered": {**values, **mine}}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        saved = values["buffered"]
        self.folds[local].load(tensors, saved)
        self.departed[local], self.sequences[local] = saved["departed"], saved["sequence"]
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
