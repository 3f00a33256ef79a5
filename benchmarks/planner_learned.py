"""The planner with what it learns from runs, on the measured cells of benchmarks/results/planner.json.

    python -m benchmarks.planner_learned

Each cell is predicted by what was learnt from the other eleven (leave one out), and each method by what was learnt from
the other methods' cells, which is harder. Nothing is run. Writes benchmarks/results/planner_learned.json and its table.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import RESULTS, write_result_and_table
from benchmarks.planner import HOSTS, METHODS, PRESET, Cell
from lowcomm.plan.learned import Observation, learn
from lowcomm.plan.runtime import Job, predict
from lowcomm.planner.inputs import preset_parameters

SPLITS: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "the other cells": lambda known, row: known is not row,
    "other methods": lambda known, row: known["method"] != row["method"],
    "other links": lambda known, row: (known["rate_mbit"], known["rtt_ms"]) != (row["rate_mbit"], row["rtt_ms"]),
}
"""What is learnt from, for a cell."""


def observation(row: dict[str, Any]) -> Observation:
    """A measured cell."""
    cell = Cell(method=row["method"], rate_mbit=row["rate_mbit"], rtt_ms=row["rtt_ms"])
    job = Job(parameters=preset_parameters(PRESET), islands=HOSTS, step_s=row["step_s"], steps=1000)
    return Observation(job=job, link=cell.link, settings=METHODS[cell.method], utilisation=row["measured"])


def row_of(row: dict[str, Any], known: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """A held-out cell."""
    found, own = learn([observation(r) for r in known]), observation(row)
    corrected = found.of(own.job, own.link, own.settings)
    before = predict(own.job, own.link, own.settings).utilisation
    return {
        **{k: row[k] for k in ("method", "rate_mbit", "rtt_ms", "measured")},
        "learnt_from": split,
        "kind": found.kind,
        "predicted": before,
        "corrected": corrected.utilisation,
        "low": corrected.low,
        "high": corrected.high,
        "error_before": abs(before / row["measured"] - 1),
        "error_after": abs(corrected.utilisation / row["measured"] - 1),
        "inside": corrected.low <= row["measured"] <= corrected.high,
    }


def learned_table(result: dict[str, Any]) -> str:
    """One line per split."""
    rows = result["rows"]
    lines = [
        "| learnt from | cells | median error before | after | worst before | after | measured within the range |",
        "|---|---|---|---|---|---|---|",
    ]
    for split in dict.fromkeys(r["learnt_from"] for r in rows):
        mine = [r for r in rows if r["learnt_from"] == split]
        before, after = ([r[f"error_{when}"] for r in mine] for when in ("before", "after"))
        lines.append(
            f"| {split} | {len(mine)} | {statistics.median(before):.1%} | {statistics.median(after):.1%} "
            f"| {max(before):.1%} | {max(after):.1%} | {statistics.mean(r['inside'] for r in mine):.0%} |"
        )
    kinds = ", ".join(f"{kind} {sum(r['kind'] == kind for r in rows)}x" for kind in sorted({r["kind"] for r in rows}))
    lines.append(
        f"\nChosen corrections: {kinds}. The range is meant for 80 % of runs. `{result['command']}`, "
        f"{result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the result and its table."""
    measured = json.loads((RESULTS / "planner.json").read_text(encoding="utf-8"))["rows"]
    rows = [
        row_of(row, [r for r in measured if keep(r, row)], split) for split, keep in SPLITS.items() for row in measured
    ]
    path = write_result_and_table("planner_learned", "python -m benchmarks.planner_learned", rows, learned_table)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
