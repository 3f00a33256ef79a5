"""Where to spend syncs, and with which outer step: periods that grow from one step beside equal ones, at equal syncs.

    python -m benchmarks.tuning_early [--preset tiny] [--steps 1280] [--syncs 40,80] [--jobs 1] [--table-only]

Every schedule with every outer step, 4 islands, on a part of the training files (`data.tuning`), one seed; beside them
DDP and one island alone, whose difference is what can be recovered. Cells are done one after the other, the likely ones
first, and none is repeated: an interrupted call goes on. A cell of tiny takes some minutes.

Writes benchmarks/results/tuning_early.json and tuning_early.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Cell, is_done, run_cells, write_result_and_table
from benchmarks.optimizers import ALONE, DDP, growth

ISLANDS = 4
LONGEST = 128
SEQ_LEN = {"nano": 64, "tiny": 128}
"""Tokens of a sequence, as in benchmarks/quality.py."""
OUTERS = {
    "averaging": "SGD(lr=1.0)",
    "Nesterov 0.7/0.8": "Nesterov(lr=0.7, momentum=0.8)",
    "Nesterov 0.4/0.8": "Nesterov(lr=0.4, momentum=0.8)",
    "averaging, then 0.7/0.8": "Pier(lr=0.7, momentum=0.8, warmup_rounds={late})",
    "averaging, then 0.7/0.5": "Pier(lr=0.7, momentum=0.5, warmup_rounds={late})",
}
"""Outer step: its flag; late: three quarters of the rounds."""


def schedules(steps: int, syncs: int) -> dict[str, tuple[str, ...]]:
    """Flags of schedules with so many syncs."""
    grown = f"Growing(growth={growth(steps, syncs, LONGEST)}, longest={LONGEST})"
    return {
        "H grows from 1": ("--sync.every", "1", "--sync.schedule", grown),
        "equal H": ("--sync.every", str(steps // syncs)),
    }


def cells(preset: str, steps: int, syncs: Sequence[int]) -> list[Cell]:
    """DDP and one island alone, then schedule by schedule."""
    found = [_cell(preset, steps, name, None, "", ("--sync.every", "32")) for name in (DDP, ALONE)]
    for count in syncs:
        for schedule, flags in schedules(steps, count).items():
            for outer, text in OUTERS.items():
                told = (*flags, "--sync.outer", text.format(late=3 * count // 4))
                found.append(_cell(preset, steps, schedule, count, outer, told))
    return found


def _cell(preset: str, steps: int, schedule: str, syncs: int | None, outer: str, flags: tuple[str, ...]) -> Cell:
    plain, islands = schedule in (DDP, ALONE), 1 if schedule == ALONE else ISLANDS
    arguments = (
        *(f"recipes/{'ddp' if plain else 'diloco'}.py:pretrain_cpu", "--data.tuning", "--eval.every", "None"),
        *("--model.preset", preset, "--data.seq-len", str(SEQ_LEN[preset]), "--steps", str(steps)),
        *("--islands", str(islands), *flags, *(("--batched",) if islands > 1 else ())),
    )
    text = f"{schedule} {syncs} {outer}"
    key = "".join(c if c.isalnum() else "-" for c in text.lower())
    columns: dict[str, Any] = {"preset": preset, "schedule": schedule, "syncs": syncs, "outer": outer, "seed": 0}
    return Cell(name=f"{preset}-{steps}-{key}", arguments=arguments, columns=columns)


def early_table(result: dict[str, Any]) -> str:
    """One line per run, the least loss first."""
    rows = sorted(result["rows"], key=lambda r: (r["preset"], r["val_bpb"]))
    lines = [
        "| model | schedule | syncs | outer step | bits per byte | against DDP | of (alone - DDP) recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        own = {x["schedule"]: x["val_bpb"] for x in rows if x["preset"] == r["preset"] and x["syncs"] is None}
        ddp, alone = own.get(DDP), own.get(ALONE)
        against = "-" if ddp is None else f"{r['val_bpb'] / ddp - 1:+.1%}"
        share = "-" if ddp is None or alone is None else f"{(alone - r['val_bpb']) / (alone - ddp):.0%}"
        lines.append(
            f"| {r['preset']} | {r['schedule']} | {r['syncs'] or '-'} | {r['outer'] or '-'} | {r['val_bpb']:.4f} "
            f"| {against} | {share} |"
        )
    if not rows:
        return "No cell is done yet.\n"
    lines.append(
        f"\n{ISLANDS} islands, {rows[0]['steps']} inner steps, tuning split, one seed. `{result['command']}`, "
        f"{result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(SEQ_LEN), default="tiny")
    parser.add_argument("--steps", type=int, default=1280)
    parser.add_argument("--syncs", default="40,80", help="numbers of syncs with commas between")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/tuning_early"))
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the result of what is done")
    options = parser.parse_args()
    wanted = cells(options.preset, options.steps, [int(n) for n in options.syncs.split(",")])
    if options.table_only:
        wanted = [c for c in wanted if is_done(c, options.work_dir)]
    rows = run_cells(wanted, options.work_dir, options.jobs)
    command = f"python -m benchmarks.tuning_early --preset {options.preset} --steps {options.steps}"
    print(write_result_and_table("tuning_early", command, rows, early_table))


if __name__ == "__main__":
    main()
