"""The planner's predictions beside real runs: two hosts of the shaped network, 2 rates x 2 round trips x 3 methods.

    python -m benchmarks.planner --work-dir DIR --base 3         the step time of cell 3
    python -m benchmarks.planner --work-dir DIR [--only 0-3]     run cells, and what they lack (those done are kept)
    python -m benchmarks.planner --work-dir DIR --collect        write results/planner.json and its table

The step time of a cell comes from a run of its own just before, on a link without limits, with the same two processes:
the same contention.
Utilisation is measured as a run reports it, 1 - blocked / wall-clock, from the first sync to the last one that training
goes on after; the first round, which compiles, and the last merge don't count. `busy` is the other definition: the
steps of that time x the step time of the run without limits, over the time. `predicted_own_step` takes the step time of
the cell itself instead: what is left of the error then is the exchange's, not the machine's. The planner knows the
link's rate and round trip, the step time, and that this network's packets hold 65,000 bytes; nothing in it was fitted
to these cells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from benchmarks.netlab import Lab
from benchmarks.netlab import Link as Wire
from benchmarks.netlab.__main__ import run_recipe
from benchmarks.planner_recipes import DELAY, EVERY, FRAGMENTS, PRESET
from benchmarks.planner_table import planner_table
from lowcomm.plan.codecs import FP32, INT4
from lowcomm.plan.runtime import Job, Link, Prediction, Settings, predict
from lowcomm.planner.inputs import preset_parameters
from lowcomm.run.run_dir import write_json

RATES_MBIT = (10.0, 100.0)
RTTS_MS = (10.0, 100.0)
METHODS = {
    "fp32": Settings(every=EVERY, codec=FP32),
    "int4": Settings(every=EVERY, codec=INT4),
    "streaming": Settings(every=EVERY, codec=INT4, fragments=FRAGMENTS, delay=DELAY),
}
HOSTS, QUEUE_MS, PACKET_BYTES, EFFICIENCY = 2, 1000.0, 64_948, 0.98
"""The lab: its packets have 65,000 bytes with 52 of headers, and nothing but acknowledgements shares the line."""
GOAL_S, FEWEST, MOST, BASE = 20.0, 4, 16, 8
"""Seconds that a cell's rounds should take; how many there are at least, at most, and in the run for the step time."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    method: str
    rate_mbit: float
    rtt_ms: float

    @property
    def name(self) -> str:
        return f"{self.method}-{self.rate_mbit:g}-{self.rtt_ms:g}"

    @property
    def link(self) -> Link:
        return Link(
            rate_bytes_per_s=self.rate_mbit * 125e3,
            rtt_s=self.rtt_ms / 1000,
            packet_bytes=PACKET_BYTES,
            efficiency=EFFICIENCY,
        )


CELLS = tuple(Cell(method=m, rate_mbit=r, rtt_ms=t) for r in RATES_MBIT for t in RTTS_MS for m in METHODS)


def run(method: str, wire: Wire, rounds: int, directory: Path) -> dict[str, Any]:
    """One recipe on two hosts; its times between the first sync and the last one before the end."""
    steps = rounds * EVERY + 1
    with Lab(HOSTS, wire) as lab:
        recipe = [f"benchmarks/planner_recipes.py:{method}", "--steps", str(steps)]
        summary = run_recipe(lab, recipe, directory / "run")
    text = (directory / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return {**steady(lines, steps), "sent_bytes": summary["bytes_sent"], "whole_utilisation": summary["utilisation"]}


def steady(lines: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Means over the islands: seconds, seconds blocked, steps."""
    found = []
    for island in sorted({line["island"] for line in lines if line["island"] is not None}):
        mine = [x for x in lines if x["island"] == island and x["event"] == "sync" and x["step"] < steps]
        first = next(i for i, x in enumerate(mine) if x["step"] >= EVERY)  # all code is compiled then
        first_line, kept, last = mine[first], mine[first + 1 :], mine[-1]
        wall_s = last["time_s"] - first_line["time_s"]
        blocked_s = sum(x["blocked_s"] for x in kept)
        found.append((wall_s, blocked_s, last["step"] - first_line["step"], len(kept)))
    wall_s, blocked_s, counted, syncs = (statistics.mean(column) for column in zip(*found, strict=True))
    return {
        "wall_s": wall_s,
        "blocked_s": blocked_s,
        "steps": counted,
        "syncs": syncs,
        "utilisation": 1 - blocked_s / wall_s,
        "step_s": (wall_s - blocked_s) / counted,
    }


def fresh(directory: Path) -> Path:
    """An empty directory of this name; an earlier, unfinished one is kept under another."""
    if directory.exists():
        directory.rename(directory.with_name(f"{directory.name}.{os.getpid()}"))
    directory.mkdir(parents=True)
    return directory


def expected(cell: Cell, step_s: float) -> Prediction:
    """What the planner says."""
    job = Job(parameters=preset_parameters(PRESET), islands=HOSTS, step_s=step_s, steps=1000)
    return predict(job, cell.link, METHODS[cell.method])


def base_of(cell: Cell, work_dir: Path) -> dict[str, Any]:
    """The run without limits that belongs to a cell; made where it is missing."""
    path = work_dir / f"base-{cell.name}.json"
    if not path.exists():
        write_json(path, run("fp32", Wire(), BASE, fresh(work_dir / f"base-{cell.name}")))
    return json.loads(path.read_text(encoding="utf-8"))


def run_cell(cell: Cell, work_dir: Path) -> None:
    """Run what is not done yet."""
    path = work_dir / f"{cell.name}.json"
    if path.exists():
        return
    base = base_of(cell, work_dir)
    prediction = expected(cell, base["step_s"])
    rounds = min(MOST, max(FEWEST, round(GOAL_S / prediction.round_s)))
    wire = Wire(rate_mbit=cell.rate_mbit, delay_ms=cell.rtt_ms / 2, queue_ms=QUEUE_MS)
    measured = run(cell.method, wire, rounds, fresh(work_dir / cell.name))
    write_json(path, {"base": base, "measured": measured})
    print(row(cell, measured, base), flush=True)


def row(cell: Cell, measured: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Predicted beside measured."""
    prediction = expected(cell, base["step_s"])
    return {
        "method": cell.method,
        "rate_mbit": cell.rate_mbit,
        "rtt_ms": cell.rtt_ms,
        "step_s": base["step_s"],
        "predicted": prediction.utilisation,
        "measured": measured["utilisation"],
        "error": abs(prediction.utilisation / measured["utilisation"] - 1),
        "predicted_own_step": expected(cell, measured["step_s"]).utilisation,
        "busy": measured["steps"] * base["step_s"] / measured["wall_s"],
        "predicted_exchange_s": prediction.exchange_s,
        "predicted_blocked_s": prediction.blocked_s * measured["steps"] / EVERY,
        **{k: measured[k] for k in ("blocked_s", "wall_s", "steps", "syncs", "sent_bytes", "whole_utilisation")},
        "cell_step_s": measured["step_s"],
        "base_sync_s": base["blocked_s"] / base["syncs"],
    }


def main() -> None:
    """Run some cells, or collect all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--only", default=f"0-{len(CELLS) - 1}", help="cells FIRST-LAST")
    parser.add_argument("--base", type=int, default=None, help="only the step time of this cell")
    parser.add_argument("--collect", action="store_true")
    options = parser.parse_args()
    work_dir = options.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    if options.base is not None:
        base_of(CELLS[options.base], work_dir)
        return
    if not options.collect:
        first, _, last = options.only.partition("-")
        for cell in CELLS[int(first) : int(last or first) + 1]:
            run_cell(cell, work_dir)
        return
    rows = []
    for cell in CELLS:
        found = json.loads((work_dir / f"{cell.name}.json").read_text(encoding="utf-8"))
        rows.append(row(cell, found["measured"], found["base"]))
    path = write_result("planner", "python -m benchmarks.planner --work-dir DIR", rows)
    table = planner_table(json.loads(path.read_text(encoding="utf-8")))
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
