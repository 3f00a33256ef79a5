"""The oracle: what must hold of a run whatever happened to it. It checks values, not the run's own words.

1. Nothing hangs, every planned fault has come, and every exit code is one that its process may have.
2. All who applied a version have the same digest of it; the chain is whole when it is folded again (`verify`).
3. Each data block is in exactly one commit.
4. All who end have the same weights, and their final loss is at most 1 % above that of the run without faults.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lowcomm.chaos.plan import Fault
from lowcomm.chaos.record import Record, Seen
from lowcomm.chaos.running import Outcome

MOST_LOSS_CHANGE = 0.01
SHOWN = 5
"""Numbers of blocks or versions that a line names."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the oracle says of a run."""

    failures: tuple[str, ...]
    """One line each; none: all holds."""
    replicas_equal: bool
    rounds_lost: int
    """Versions that somebody had applied, and of which the history has another one or none."""
    val_loss: float | None
    """Of the final weights, in nats per token; None: nobody ended."""
    loss_change: float | None
    """To the run without faults, as a part of it."""


def judge(outcome: Outcome, faults: tuple[Fault, ...], blocks: int | None, calm_loss: float | None) -> Finding:
    """blocks: data blocks of the run; None: each island has text of its own. calm_loss: None: this is the calm run."""
    versions = digests(outcome, faults)
    forked = {v: found for v, found in versions.items() if len(set(found.values())) > 1}
    ends = [json.loads((p.directory / "summary.json").read_text("utf-8")) for p in outcome.processes if p.code == 0]
    weights = {end["weights_sha256"] for end in ends}
    loss = ends[0]["val_loss"] if ends else None
    change = None if loss is None or calm_loss is None else loss / calm_loss - 1
    failures = [
        *_ends(outcome, faults),
        *(f"version {v} has the digests {_several(found)}" for v, found in sorted(forked.items())[:SHOWN]),
        *([] if outcome.verified else [f"the chain is not whole: {outcome.said[-300:]}"]),
        *([] if blocks is None or not ends else _blocks(outcome, faults, blocks)),
        *([] if len(weights) <= 1 else [f"{len(weights)} different weights at the end"]),
    ]
    if change is not None and change > MOST_LOSS_CHANGE:
        failures.append(f"the final loss {loss:.4f} is {change:+.2%} from that of the run without faults")
    equal = not forked and len(weights) == 1
    return Finding(
        failures=tuple(failures), replicas_equal=equal, rounds_lost=len(forked), val_loss=loss, loss_change=change
    )


def digests(outcome: Outcome, faults: tuple[Fault, ...]) -> dict[int, dict[str, str]]:
    """By version, by process: the digest. One that folds to other bits on purpose is left out from then on."""
    found: dict[int, dict[str, str]] = {}
    for number, seen in applied(outcome, faults):
        found.setdefault(seen.version, {})[f"{number:02d}-{outcome.processes[number].name}"] = seen.digest
    return found


def applied(outcome: Outcome, faults: tuple[Fault, ...]) -> list[tuple[int, Seen]]:
    """All that was applied, with the number of the process."""
    odd = {e["pid"]: e["at"] for n, e in outcome.events.items() if faults[n].fault == "bits"}
    found: list[tuple[int, Seen]] = []
    for number, process in enumerate(outcome.processes):
        until = odd.get(process.pid, float("inf"))
        found += [(number, seen) for seen in Record.read(process.record).seen if seen.at < until]
    return found


def _several(found: dict[str, str]) -> str:
    return ", ".join(f"{digest[:8]} ({name})" for name, digest in found.items())


def _ends(outcome: Outcome, faults: tuple[Fault, ...]) -> list[str]:
    failures = [] if outcome.hung is None else [f"a hang of {outcome.hung}"]
    for number, one in enumerate(faults):
        if number not in outcome.events:
            failures.append(f"fault {number} ({one.fault} in {one.phase} from version {one.round} on) did not come")
    for process in outcome.processes:
        if process.code not in process.legal:
            last = _last_line(process.log.read_text("utf-8", errors="replace"))
            failures.append(f"{process.name} ended with {process.code}: {last} ({process.log})")
    if not any(p.code == 0 and p.island is not None for p in outcome.processes):
        failures.append("no island saw the run's end")
    return failures


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing on its log"


def _blocks(outcome: Outcome, faults: tuple[Fault, ...], blocks: int) -> list[str]:
    by_version = {seen.version: seen.blocks for _, seen in applied(outcome, faults)}
    counts = Counter(b for used in by_version.values() for b in used)
    lost = [b for b in range(blocks) if b not in counts]
    doubled = [b for b, n in counts.items() if n > 1]
    failures = [f"{len(lost)} blocks are in no commit: {lost[:SHOWN]}"] if lost else []
    return failures + ([f"{len(doubled)} blocks are in several commits: {doubled[:SHOWN]}"] if doubled else [])


def used_of(outcome: Outcome) -> dict[int, Any]:
    """Contributions by version."""
    return {seen.version: seen.used for _, seen in applied(outcome, ())}
