"""Choosing the outer momentum by number of rounds, on a validation part of the training files.

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


def cells() -> list[Cell]:
    """One cell per (rounds, momentum)."""
    return [
        Cell(
            name=f"rounds{rounds}-m{momentum}",
            arguments=(
                *("recipes/diloco.py:pretrain_cpu", "--data.tuning", "--steps", str(steps), "--eval.every", "None"),
                *("--sync.every", str(every), "--sync.outer.momentum", str(momentum)),
            ),
            columns={"rounds_planned": rounds, "H": every, "outer_lr": 0.7, "momentum": momentum, "seed": 0},
        )
        for rounds, steps, every in GRID
        for momentum in MOMENTA
    ]


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
