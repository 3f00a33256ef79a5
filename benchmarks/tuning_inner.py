"""Choosing the learning rate of each inner optimizer, on a part of the training files.

    python -m benchmarks.tuning_inner [--jobs 2]

The reported validation files are never looked at here (`data.tuning`). One seed, nano preset, 1280 steps, H = 32; AdamW
has the same grid around its own rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import Cell, run_cells, write_result

RATES = {
    "AdamW": ("diloco.py:pretrain_cpu", (1.5e-3, 3e-3, 6e-3)),
    "Muon": ("muloco.py:pretrain_cpu", (1.5e-3, 3e-3, 6e-3)),
    "SOAP": ("shampoo.py:pretrain_cpu", (1.5e-3, 3e-3, 6e-3)),
    "Lion": ("lion.py:pretrain_cpu", (1.5e-4, 3e-4, 6e-4)),
}
"""Recipe and peak learning rates by inner optimizer."""


def cells() -> list[Cell]:
    """One cell per inner optimizer and learning rate."""
    shared = ("--data.tuning", "--eval.every", "None", "--steps", "1280", "--sync.outer.momentum", "0.6")
    return [
        Cell(
            name=f"{inner}-lr{lr:g}",
            arguments=(f"recipes/{recipe}", *shared, "--inner.optimizer.lr", f"{lr:g}"),
            columns={"inner": inner, "lr": lr, "H": 32, "momentum": 0.6, "seed": 0},
        )
        for inner, (recipe, rates) in RATES.items()
        for lr in rates
    ]


def main() -> None:
    """Run the grid and write benchmarks/results/tuning_inner.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/tuning_inner"))
    options = parser.parse_args()
    rows = run_cells(cells(), options.work_dir, options.jobs)
    print(write_result("tuning_inner", "python -m benchmarks.tuning_inner", rows))


if __name__ == "__main__":
    main()
