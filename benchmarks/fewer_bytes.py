"""How few bytes will do: validation bits per byte against DDP at equal tokens, for a thousandth of its bytes and less.

    python -m benchmarks.fewer_bytes [--seeds 1] [--jobs 2] [--only "2 bits, H=67"] [--table-only]

The nano preset, 4 islands, 20,480 inner steps: long periods and sparse updates need hundreds of rounds, so the rounds
are a column. Every run is a `lowcomm simulate --batched` process; bytes are counted by its transport. Runs that are
done are not repeated: an interrupted call goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import Cell, known_rows, run_cells, write_result
from benchmarks.tables import write_quality_table

STEPS, SEQ_LEN, SEQUENCES, ISLANDS = 20_480, 64, 512, 4
RECIPES = "recipes/compressed.py:"
METHODS: dict[str, tuple[str, int, float | None]] = {
    "64 of 4096 in 2 bits, kept residual, H=36": (f"{RECIPES}sparse_kept", 36, None),
    "64 of 4096 in 2 bits, kept residual, H=12": (f"{RECIPES}sparse_kept", 12, None),
    "2 bits, H=67": (f"{RECIPES}two_bit", 67, 0.9),
    "2 bits, H=67, outer momentum 0.8": (f"{RECIPES}two_bit", 67, 0.8),
    "MuLoCo, 2 bits, H=67": ("recipes/muloco.py:two_bit", 67, 0.8),
}
"""Name: recipe, H, outer momentum (None: the recipe's)."""


def cells(seeds: int, only: tuple[str, ...] | None) -> list[Cell]:
    """Seed by seed; `only`: names of methods, None: all."""
    return [
        cell
        for seed in range(seeds)
        for cell in (_ddp(seed), *(_local(name, seed) for name in METHODS))
        if only is None or cell.columns["method"] in only
    ]


def _shared(seed: int) -> tuple[str, ...]:
    return (
        *("--model.preset", "nano", "--steps", str(STEPS), "--seed", str(seed), "--islands", str(ISLANDS)),
        *("--data.seq-len", str(SEQ_LEN), "--data.validation-sequences", str(SEQUENCES)),
        *("--eval.every", str(STEPS // 10), "--batched"),
    )


def _ddp(seed: int) -> Cell:
    columns: dict[str, Any] = {"method": "DDP", "H": None, "momentum": None, "seed": seed}
    return Cell(name=f"ddp-seed{seed}", arguments=("recipes/ddp.py:pretrain_cpu", *_shared(seed)), columns=columns)


def _local(name: str, seed: int) -> Cell:
    recipe, every, momentum = METHODS[name]
    outer = () if momentum is None else ("--sync.outer.momentum", str(momentum))
    sync = ("--sync.every", str(every), *outer)
    columns = {"method": name, "H": every, "momentum": momentum, "seed": seed}
    text = name.replace(" ", "-").replace(",", "").replace("=", "")
    return Cell(name=f"{text}-seed{seed}", arguments=(recipe, *_shared(seed), *sync), columns=columns)


def main() -> None:
    """Run what is missing; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/fewer_bytes"))
    parser.add_argument("--only", action="append", default=None, help="DDP, or a method; may be given several times")
    parser.add_argument("--table-only", action="store_true", help="run nothing: write what is known")
    options = parser.parse_args()
    known = {"DDP", *METHODS}
    if options.only is not None and not set(options.only) <= known:
        parser.error(f"--only: {sorted(set(options.only) - known)} are none of {sorted(known)}")
    wanted = cells(options.seeds, None if options.only is None else tuple(options.only))
    if options.table_only:
        rows = known_rows("fewer_bytes", wanted, options.work_dir)
    else:
        rows = run_cells(wanted, options.work_dir, options.jobs)
    if options.only is not None and not options.table_only:
        return  # a part of the runs: no result yet
    path = write_result("fewer_bytes", f"python -m benchmarks.fewer_bytes --seeds {options.seeds}", rows)
    print(write_quality_table(path))


if __name__ == "__main__":
    main()
