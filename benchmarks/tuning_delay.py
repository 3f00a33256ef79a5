"""Choosing the outer step of updates that arrive a round late (Eager), on a part of the training files.

    python -m benchmarks.tuning_delay [--jobs 2]

The reported validation files are never looked at here (`data.tuning`). One seed, nano preset, 640 steps, H = 16; plain
DiLoCo stands beside it for the scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import Cell, run_cells, write_result

STEPS = (("eager.py", 0.7, 0.6), ("eager.py", 0.5, 0.3), ("eager.py", 1.0, 0.0), ("diloco.py", 0.7, 0.6))
"""Recipe, outer learning rate, momentum."""


def cells() -> list[Cell]:
    """One cell per outer step."""
    shared = (
        *("--model.preset", "nano", "--steps", "640", "--sync.every", "16", "--islands", "4"),
        *("--data.tuning", "--data.seq-len", "64", "--data.batch-size", "4", "--data.validation-sequences", "128"),
        *("--eval.every", "None"),
    )
    return [
        Cell(
            name=f"{recipe[:-3]}-lr{lr:g}-m{momentum:g}",
            arguments=(
                f"recipes/{recipe}:pretrain_cpu",
                *shared,
                *("--sync.outer.lr", f"{lr:g}", "--sync.outer.momentum", f"{momentum:g}"),
            ),
            columns={"recipe": recipe, "H": 16, "outer_lr": lr, "momentum": momentum, "seed": 0},
        )
        for recipe, lr, momentum in STEPS
    ]


def main() -> None:
    """Run the grid and write benchmarks/results/tuning_delay.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/tuning_delay"))
    options = parser.parse_args()
    rows = run_cells(cells(), options.work_dir, options.jobs)
    print(write_result("tuning_delay", "python -m benchmarks.tuning_delay", rows))


if __name__ == "__main__":
    main()
