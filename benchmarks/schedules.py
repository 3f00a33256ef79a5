"""What the schedules that hide or spare syncs cost in loss: validation bits per byte at equal tokens, nano, H = 32.

    python -m benchmarks.schedules [--seeds 1] [--jobs 2] [--table-only]

Same model, data and steps as benchmarks/quality.py, whose rows of DDP and of plain DiLoCo with the same seeds stand
beside them. Every run is a `lowcomm simulate` process; the bits are those of real processes, whose transfers land at
the same steps. Runs that are done are not repeated: an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Cell, is_done, run_cells, write_result
from benchmarks.quality import PRESETS
from benchmarks.tables import write_quality_table

BESIDE = ("DDP", "DiLoCo H=32")
LINK = ("--sync.schedule.step-s", "0.012", "--sync.schedule.link-mbit", "35", "--sync.schedule.round-trip-ms", "50")
"""The middle link of benchmarks/headline.py, given and not timed: the same choices each time."""
HALVES = ("--sync.schedule.fragments", "2")
"""The model has two layers."""
METHODS: dict[str, tuple[str, float | None, tuple[str, ...]]] = {
    "streaming, 2 fragments, delay 5": ("streaming.py:fp32", 0.8, HALVES),
    "streaming, 2 fragments, delay 5, int4": ("streaming.py:int4", 0.8, HALVES),
    "eager, int4": ("eager.py:pretrain_cpu", 0.3, ()),
    "one-step delay, int4": ("dilocox.py:int4", None, ()),
    "one-step delay, rank 8 (DiLoCoX)": ("dilocox.py:pretrain_cpu", None, ()),
    "H grows from 16 to 128": ("late_merge.py:growing", 0.8, ("--sync.every", "16")),
    "20 late merges": ("late_merge.py:late", None, ("--sync.schedule.steps", str(PRESETS["nano"][0]))),
    "adaptive H and bits, 35 Mbit/s, 50 ms": ("adaptive.py:bits", 0.8, LINK),
}
"""Name: recipe, outer momentum (None: none), more arguments."""


def cells(seeds: int) -> list[Cell]:
    """Seed by seed."""
    return [_cell(name, seed) for seed in range(seeds) for name in METHODS]


def _cell(name: str, seed: int) -> Cell:
    recipe, momentum, more = METHODS[name]
    steps, seq_len, sequences = PRESETS["nano"]
    arguments = (
        *(f"recipes/{recipe}", "--model.preset", "nano", "--steps", str(steps), "--seed", str(seed), "--islands", "4"),
        *("--data.seq-len", str(seq_len), "--data.validation-sequences", str(sequences)),
        *("--eval.every", str(steps // 10), *more),
    )
    outer = () if momentum is None else ("--sync.outer.momentum", str(momentum))
    text = "".join(c if c.isalnum() else "-" for c in name.lower())
    columns: dict[str, Any] = {"method": name, "H": 32, "momentum": momentum, "seed": seed}
    return Cell(name=f"{text}-seed{seed}", arguments=(*arguments, *outer), columns=columns)


def main() -> None:
    """Run what is missing; write benchmarks/results/schedules.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/schedules"))
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the result of what is done")
    options = parser.parse_args()
    wanted = cells(options.seeds)
    if options.table_only:
        wanted = [cell for cell in wanted if is_done(cell, options.work_dir)]
    known = json.loads((RESULTS / "quality_nano.json").read_text(encoding="utf-8"))["rows"]
    beside = [r for r in known if r["method"] in BESIDE and r["seed"] < options.seeds]
    rows = [*beside, *run_cells(wanted, options.work_dir, options.jobs)]
    path = write_result("schedules", f"python -m benchmarks.schedules --seeds {options.seeds}", rows)
    print(write_quality_table(path))


if __name__ == "__main__":
    main()
