"""Choosing the outer momentum by number of rounds and after a DDP warm-up, on a part of the training files.

    python -m benchmarks.tuning [--jobs 2]

The reported validation files are never looked at here (`data.tuning`). One seed, nano preset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import Cell, run_cells, write_result

GRID = [
    # rounds, steps, H
    (40, 1280, 32),
    (160, 5120, 32),
]
MOMENTA = (0.6, 0.8, 0.9)
WARMUP_MOMENTA = (0.5, 0.7, 0.8)
"""After a DDP warm-up of a tenth of 5120 steps, H = 32: 144 rounds."""


def cells() -> list[Cell]:
    """One cell per (rounds, momentum), then those with a warm-up, then DDP for the scale."""
    return [
        *(_diloco(rounds, steps, every, momentum) for rounds, steps, every in GRID for momentum in MOMENTA),
        *(_after_warmup(momentum) for momentum in WARMUP_MOMENTA),
        Cell(
            name="ddp",
            arguments=("recipes/ddp.py:pretrain_cpu", *TUNING, "--steps", "5120"),
            columns={"method": "DDP", "rounds_planned": 0, "H": None, "outer_lr": None, "momentum": None, "seed": 0},
        ),
    ]


TUNING = ("--data.tuning", "--eval.every", "None")


def _diloco(rounds: int, steps: int, every: int, momentum: float) -> Cell:
    recipe = ("recipes/diloco.py:pretrain_cpu", *TUNING, "--steps", str(steps))
    sync = ("--sync.every", str(every), "--sync.outer.momentum", str(momentum))
    columns = {
        "method": "DiLoCo",
        "rounds_planned": rounds,
        "H": every,
        "outer_lr": 0.7,
        "momentum": momentum,
        "seed": 0,
    }
    return Cell(name=f"rounds{rounds}-m{momentum}", arguments=(*recipe, *sync), columns=columns)


def _after_warmup(momentum: float) -> Cell:
    recipe = ("recipes/diloco.py:warmup", *TUNING, "--steps", "5120", "--sync.schedule.warmup-steps", "512")
    columns = {"method": "DDP warm-up, DiLoCo", "rounds_planned": 144, "H": 32, "outer_lr": 0.7, "momentum": momentum}
    sync = ("--sync.outer.momentum", str(momentum))
    return Cell(name=f"warmup-m{momentum}", arguments=(*recipe, *sync), columns={**columns, "seed": 0})


def main() -> None:
    """Run the grid and write benchmarks/results/tuning.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/tuning"))
    options = parser.parse_args()
    rows = run_cells(cells(), options.work_dir, options.jobs)
    print(write_result("tuning", "python -m benchmarks.tuning", rows))


if __name__ == "__main__":
    main()
