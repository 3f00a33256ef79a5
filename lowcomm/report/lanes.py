"""What each island did when, from metrics.jsonl: a lane of computing and one of its link, in seconds of the run.

Lines without the times of an exchange (older runs) hold its end and length only: it is then drawn as long as the sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lowcomm.report.load import Event, Run, number
from lowcomm.report.series import islands_of

Kind = Literal["training", "blocked", "late", "evaluation", "roll call", "transfer"]

_TIMED = ("step", "sync", "eval", "deadline")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A stretch of one lane; `event` is the line that it comes from (None: what lies between others)."""

    kind: Kind
    start_s: float
    end_s: float
    event: Event | None = None


@dataclass(kw_only=True)
class Lanes:
    """One island: slices in order of time, without overlap in a lane."""

    compute: list[Slice] = field(default_factory=list)
    link: list[Slice] = field(default_factory=list)


def lanes_of(run: Run) -> dict[int, Lanes]:
    """The lanes of each island that logged anything."""
    lanes: dict[int, Lanes] = {}
    for island in islands_of(run):
        events = [e for who in (island, None) for e in _in_order(run.events, who)]
        link = [part for e in events if e.get("event") == "sync" for part in _link(e)]
        busy = [part for e in events for part in _busy(e)]
        ends_s = [_at(e, "time_s") for e in events if e.get("event") in ("step", "sync")]
        compute = _fill(_apart(busy), [e for e in events if e.get("event") == "step"], max(ends_s, default=0.0))
        lanes[island] = Lanes(compute=compute, link=_apart(link))
    return lanes


def _at(event: Event, key: str) -> float:
    return number(event.get(key)) or 0.0


def _in_order(events: Sequence[Event], island: int | None) -> list[Event]:
    """Lines of an island (None: of the whole run) without what a resumed run did again.

    Time steps back there, and what came after that time is undone.
    """
    kept: list[Event] = []
    for event in events:
        known = event.get("event") in _TIMED and number(event.get("time_s")) is not None
        if not known or number(event.get("island")) != island:
            continue
        while kept and _at(kept[-1], "time_s") > _at(event, "time_s"):
            kept.pop()
        kept.append(event)
    return kept


def _link(event: Event) -> list[Slice]:
    start_s, whole_s = number(event.get("start_s")), number(event.get("exchange_s"))
    if start_s is None or whole_s is None:
        end_s = _at(event, "time_s")
        return [Slice(kind="transfer", start_s=end_s - _at(event, "sync_s"), end_s=end_s, event=event)]
    end_s = start_s + whole_s
    rolled_s = end_s - min(number(event.get("transfer_s")) or whole_s, whole_s)
    waiting = Slice(kind="roll call", start_s=start_s, end_s=rolled_s, event=event)
    return [waiting, Slice(kind="transfer", start_s=rolled_s, end_s=end_s, event=event)]


def _busy(event: Event) -> list[Slice]:
    """When an island did something else than train."""
    end_s, kind = _at(event, "time_s"), event.get("event")
    if kind == "eval" and number(event.get("start_s")) is not None:
        return [Slice(kind="evaluation", start_s=_at(event, "start_s"), end_s=end_s, event=event)]
    if kind == "deadline":
        return [Slice(kind="late", start_s=end_s - _at(event, "waited_s"), end_s=end_s, event=event)]
    if kind == "step" and _at(event, "blocked_s") > 0:  # gradients averaged since the last line: their sum, at the end
        return [Slice(kind="blocked", start_s=end_s - _at(event, "blocked_s"), end_s=end_s, event=event)]
    if kind != "sync":
        return []
    # a line without blocked_s says nothing about overlap: the sync then counts as blocking
    blocked_s = number(event.get("blocked_s"))
    blocked_s = _at(event, "sync_s") if blocked_s is None else blocked_s
    launched_s, launch_s = number(event.get("launched_s")), _at(event, "launch_s")
    if launched_s is None:
        return [Slice(kind="blocked", start_s=end_s - blocked_s, end_s=end_s, event=event)]
    launch = Slice(kind="blocked", start_s=launched_s, end_s=launched_s + launch_s, event=event)
    return [launch, Slice(kind="blocked", start_s=end_s - (blocked_s - launch_s), end_s=end_s, event=event)]


def _apart(slices: Sequence[Slice]) -> list[Slice]:
    """In order of time, each cut where the one before it ends; empty ones are left out."""
    found: list[Slice] = []
    until_s = 0.0
    for part in sorted(_over(slices), key=lambda s: (s.start_s, s.end_s)):
        start_s = max(part.start_s, until_s)
        if part.end_s > start_s:
            found.append(replace(part, start_s=start_s))
            until_s = part.end_s
    return found


def _over(slices: Sequence[Slice]) -> list[Slice]:
    """A late wait is part of a blocked stretch, which is cut around it."""
    late = [s for s in slices if s.kind == "late"]
    found = list(late)
    for part in (s for s in slices if s.kind != "late"):
        inside = [w for w in late if part.kind == "blocked" and part.start_s < w.end_s and w.start_s < part.end_s]
        start_s = part.start_s
        for wait in inside:
            found.append(replace(part, start_s=start_s, end_s=wait.start_s))
            start_s = wait.end_s
        found.append(replace(part, start_s=start_s))
    return [s for s in found if s.end_s > s.start_s]


def _fill(busy: Sequence[Slice], steps: Sequence[Event], end_s: float) -> list[Slice]:
    """Training between the busy slices, cut where steps were logged."""
    found: list[Slice] = []
    marks = iter(sorted(steps, key=lambda e: _at(e, "time_s")))
    mark = next(marks, None)
    until_s = 0.0
    for part in [*busy, Slice(kind="training", start_s=end_s, end_s=end_s)]:
        while mark is not None and _at(mark, "time_s") <= part.start_s:
            until_s = _train(found, until_s, _at(mark, "time_s"), mark)
            mark = next(marks, None)
        until_s = _train(found, until_s, part.start_s, part.event)
        if part.end_s > part.start_s:
            found.append(part)
        until_s = max(until_s, part.end_s)
    return found


def _train(found: list[Slice], start_s: float, end_s: float, event: Event | None) -> float:
    if end_s > start_s:
        found.append(Slice(kind="training", start_s=start_s, end_s=end_s, event=event))
    return max(start_s, end_s)
