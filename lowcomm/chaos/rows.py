"""Rows of results: a line for each fault, of how long it stopped the others, and when its island was back."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from lowcomm.chaos.kinds import KINDS
from lowcomm.chaos.oracle import Finding
from lowcomm.chaos.plan import Fault
from lowcomm.chaos.record import Record
from lowcomm.chaos.running import Outcome

MOST_AFTER_S = 10.0
"""After a fault of whose island nothing more is heard."""


def rows_of(
    outcome: Outcome, faults: Sequence[Fault], finding: Finding, calm_gap_s: float, system: str
) -> list[dict[str, Any]]:
    """calm_gap_s: seconds between commits without faults."""
    records = [Record.read(process.record) for process in outcome.processes]
    times = sorted(event["at"] for event in outcome.events.values())
    found: list[dict[str, Any]] = []
    for number, one in enumerate(faults):
        event = outcome.events.get(number)
        times_s: dict[str, float | None] = {"stall_s": None, "recovery_s": None}
        if event is not None:
            following = next((t for t in times if t > event["at"]), None)
            times_s = _times(outcome, records, event, one, calm_gap_s, following)
        found.append({
            "fault": one.fault, "phase": one.phase, "system": system,
            "island": None if event is None else event["island"],
            "version": None if event is None else event["version"], "what": KINDS[one.fault].what,
            "survived": not finding.failures, "replicas_equal": finding.replicas_equal,
            "rounds_lost": finding.rounds_lost, **times_s, "final_loss_change": finding.loss_change, "run": one.run,
            "why_not": "; ".join(finding.failures) or None,
        })  # fmt: skip
    return found


def _times(
    outcome: Outcome,
    records: list[Record],
    event: dict[str, Any],
    one: Fault,
    calm_gap_s: float,
    following: float | None,
) -> dict[str, float | None]:
    """stall_s: of the other islands, beyond the usual; recovery_s: until its island's next contribution counts."""
    began, island = event["at"], event["island"]
    own = [k for k, p in enumerate(outcome.processes) if p.island == island]
    back = _back(outcome, records, event, one)
    until = back if back is not None else began + one.lasts_s + MOST_AFTER_S
    if following is not None:
        until = min(until, max(following, began + one.lasts_s))
    gaps = [
        gap
        for k, record in enumerate(records)
        if k not in own
        for gap in gaps_of(record, began, until)
    ]  # fmt: skip
    return {
        "stall_s": max(0.0, max(gaps) - calm_gap_s) if gaps else None,
        "recovery_s": None if back is None else back - began,
    }


def _back(outcome: Outcome, records: list[Record], event: dict[str, Any], one: Fault) -> float | None:
    """When a contribution of the island was used that it began after the fault; one that ended: its next start's."""
    sent = event["version"] + (1 if one.phase in ("uploaded", "apply") else 0)
    ended = bool(KINDS[one.fault].ends)
    found = [
        at
        for process, record in zip(outcome.processes, records, strict=True)
        if process.island == event["island"] and not (ended and process.pid == event["pid"])
        for at, version in record.mine
        if at > event["at"] and version > sent
    ]
    return min(found, default=None)


def gaps_of(record: Record, start: float, end: float) -> list[float]:
    """Seconds between commits with contributions, of those that overlap this time."""
    times = [seen.at for seen in record.seen if seen.used]
    return [b - a for a, b in itertools.pairwise(times) if b > start and a < end]


def usual_gap_s(outcome: Outcome) -> float:
    """The median time between commits of a calm run, after the first ones, in which processes still start."""
    gaps = [g for p in outcome.processes for g in gaps_of(Record.read(p.record), 0.0, float("inf"))[1:]]
    return statistics.median(gaps) if gaps else 1.0
