"""Rows of benchmarks/robust.py from run directories: who counted in each round, and what an attack was worth."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNTRAINED = 8.0
"""Bits per byte of a model of bytes that knows nothing."""
_PICKED = re.compile(r"round (\d+): .*: chosen islands ([\d, ]+); left out")
_WEIGHED = re.compile(r"round (\d+): .*: weights ((?:\d+: [-\d.e]+(?:, )?)+)")
_DROPPED = re.compile(r"island (\d+) was left out of round (\d+):")


def row_of(directory: Path, cell: Mapping[str, Any], islands: int, failure: str | None) -> dict[str, Any]:
    """One run's row; of a run that failed the loss is None."""
    path = directory / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    notes = _notes(directory / "metrics.jsonl")
    overheard = (summary.get("attack") or {}).get("overheard_bytes", 0)
    rounds = summary.get("rounds") or 0
    return {
        **cell,
        "val_bpb": summary.get("val_bpb") if failure is None else None,
        "chosen_right": chosen_right(notes, cell, islands, rounds),
        "seconds_per_round": summary["sync_s"] / rounds if rounds else None,
        "bytes_sent": summary["bytes_sent"] - overheard if summary else None,
        "rounds": rounds,
        "failure": failure,
    }


def _notes(path: Path) -> list[str]:
    if not path.exists():
        return []
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [str(e["note"]) for e in events if e.get("event") == "note"]


def chosen_right(notes: Sequence[str], cell: Mapping[str, Any], islands: int, rounds: int) -> float | None:
    """1: attackers had no weight in any round; 0: as much as in the mean, or more. None: weights are not known.

    Rules of coordinates give islands no weight; a mean weighs all alike who are not left out.
    """
    bad = set(range(islands - cell["attackers"], islands))
    if not bad or not rounds:
        return None
    weights: dict[int, dict[int, float]] = {}
    for note in notes:
        if found := _PICKED.match(note):
            chosen = [int(k) for k in found[2].split(",")]
            weights[int(found[1])] = {k: 1 / len(chosen) for k in chosen}
        elif found := _WEIGHED.match(note):
            pairs = (pair.split(":") for pair in found[2].split(","))
            weights[int(found[1])] = {int(k): abs(float(c)) for k, c in pairs}
    if cell["rule"] == "gate":
        dropped = [(int(m[2]), int(m[1])) for note in notes if (m := _DROPPED.match(note))]
        weights = {r: {k: 1.0 for k in range(islands) if (r, k) not in dropped} for r in range(rounds)}
    if not weights:
        return None
    shares = [sum(w for k, w in one.items() if k in bad) / max(sum(one.values()), 1e-30) for one in weights.values()]
    fair = len(bad) / islands
    return sum(max(0.0, 1 - share / fair) for share in shares) / len(shares)


def with_success(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with what the attack was worth, against the mean without attackers on the same split and seed.

    `over_clean`: bits per byte above it, relative. `attack_success`: the share of what training wins that is lost; 1
    for a run that failed.
    """
    clean = {(r["split"], r["seed"]): r["val_bpb"] for r in rows if r["rule"] == "gate" and r["attackers"] == 0}
    found = []
    for row in rows:
        base, bpb = clean.get((row["split"], row["seed"])), row["val_bpb"]
        over = None if base is None or bpb is None else bpb / base - 1
        success = 1.0 if row["failure"] is not None else None
        if base is not None and bpb is not None:
            success = min(1.0, max(0.0, (bpb - base) / (UNTRAINED - base)))
        found.append({**row, "over_clean": over, "attack_success": success})
    return found
