"""Merkle roots of rounds, of runs whose steps were hashed: what somebody else may write down and hold a run to."""

from __future__ import annotations

from collections.abc import Sequence

from lowcomm.report.load import Run
from lowcomm.report.sections import table, text

SHOWN = 200


def step_hash_section(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A folded table for each run with hashes; empty where there is none."""
    parts: list[str] = []
    for run, name in zip(runs, names, strict=True):
        rows = [(e.get("round"), e.get("island"), e["steps_root"]) for e in run.of("sync") if e.get("steps_root")]
        if not rows:
            continue
        lines = [
            f'<tr><td class="code">{text(root)}</td><td class="n">{text(at)}</td><td class="n">{text(island)}</td></tr>'
            for at, island, root in rows[-SHOWN:]
        ]
        more = f", the last {SHOWN}" if len(rows) > SHOWN else ""
        summary = f"{text(name)}: Merkle roots of {len(rows)} rounds and islands{more}"
        body = table(["Root"], ["Rounds done", "Island"], lines, "tall")
        parts.append(f'<details class="panel"><summary>{summary}</summary>{body}</details>')
    return f"<h2>Step hashes</h2>{''.join(parts)}" if parts else ""
