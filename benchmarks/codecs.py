"""Validation bits per byte against bytes: every codec beside DDP and fp32 DiLoCo, at equal tokens.

    python -m benchmarks.codecs [--seeds 3] [--jobs 2] [--only sparseloco,int4] [--table-only]

Every run is a `lowcomm simulate` process of a recipe in recipes/ on the nano preset with 4 islands; bytes are counted
by its transport. Runs that are done are not repeated: an interrupted call goes on. Writes
benchmarks/results/codecs.json, its table codecs.md and the plot codecs.svg (which needs Chrome or Chromium).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.codecs_report import write_codecs_plot, write_codecs_table
from benchmarks.common import Cell, is_done, run_cells, write_result

STEPS, EVERY, SEQ_LEN, SEQUENCES, ISLANDS = 5120, 32, 64, 512, 4
DDP, DILOCO = "DDP", "fp32 DiLoCo"
COMPRESSED = (
    *("int8", "fp8", "int4", "two_bit", "sign", "sparseloco", "sparse_kept", "chain", "random_k", "psofed"),
    *("threshold", "powersgd", "demo", "fedzip", "rqm"),
)
"""Functions of recipes/compressed.py with H = 32."""
NESTEROV = ("--sync.outer.lr", "0.7", "--sync.outer.momentum", "0.8")
"""DiLoCo's outer step instead of averaging."""
TRADE: dict[str, tuple[str, tuple[str, ...]]] = {
    "sparseloco k=256": ("sparseloco", ("--sync.codec.codec.k", "256")),
    "sparseloco H=8": ("sparseloco", ("--sync.every", "8")),
    "sparse_kept H=16": ("sparse_kept", ("--sync.every", "16")),
    "sparse_kept momentum=0.5": ("sparse_kept", ("--sync.outer.momentum", "0.5")),
    "sparseloco Nesterov k=256": ("sparseloco", (*NESTEROV, "--sync.codec.codec.k", "256")),
    "random_k Nesterov": ("random_k", NESTEROV),
    "powersgd Nesterov": ("powersgd", NESTEROV),
    "demo Nesterov": ("demo", NESTEROV),
}
"""What loss can be traded for: density, rounds, memory of the error, outer step. Name: recipe and its flags."""
EVERY_STEP = ("distributed_lion",)
"""Those that sync after every step."""
FIRST = (DDP, DILOCO, "int4", "sparseloco", "sparse_kept", "sparse_kept H=16")
"""Run for all seeds before the others, for one seed after the other."""


def cells(seeds: int, only: tuple[str, ...] | None) -> list[Cell]:
    """In an order in which an interrupted call leaves whole columns. `only`: names of codecs; None: all."""
    found = [cell for seed in range(seeds) for cell in _one_seed(seed)]
    found.sort(key=lambda cell: cell.columns["codec"] not in FIRST)
    return [cell for cell in found if only is None or cell.columns["codec"] in (DDP, DILOCO, *only)]


def _one_seed(seed: int) -> list[Cell]:
    shared = (
        *("--model.preset", "nano", "--steps", str(STEPS), "--seed", str(seed), "--islands", str(ISLANDS)),
        *("--data.seq-len", str(SEQ_LEN), "--data.validation-sequences", str(SEQUENCES)),
        *("--eval.every", str(STEPS // 10)),
    )
    every = ("--sync.every", str(EVERY))
    found = [
        _cell(DDP, seed, None, ("recipes/ddp.py:pretrain_cpu", *shared)),
        _cell(DILOCO, seed, EVERY, ("recipes/diloco.py:pretrain_cpu", *shared, *every)),
    ]
    for codec in COMPRESSED:
        found.append(_cell(codec, seed, EVERY, (f"recipes/compressed.py:{codec}", *shared, *every)))
    for name, (recipe, changes) in TRADE.items():
        period = int(changes[1]) if changes[0] == "--sync.every" else EVERY
        found.append(_cell(name, seed, period, (f"recipes/compressed.py:{recipe}", *shared, *every, *changes)))
    for codec in EVERY_STEP:
        found.append(_cell(codec, seed, 1, (f"recipes/compressed.py:{codec}", *shared)))
    return found


def _cell(codec: str, seed: int, every: int | None, arguments: tuple[str, ...]) -> Cell:
    columns: dict[str, Any] = {"codec": codec, "H": every, "seed": seed}
    return Cell(name=f"{codec.replace(' ', '-').replace('=', '')}-seed{seed}", arguments=arguments, columns=columns)


def with_cost(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `bytes_per_parameter_per_sync`: what an island sent in a sync (DDP: in a step)."""
    syncs = row["rounds"] if row["H"] is not None else row["steps"]
    return {**row, "syncs": syncs, "bytes_per_parameter_per_sync": row["bytes_sent"] / syncs / row["parameters"]}


def main() -> None:
    """Run what is missing; write the result, its table and its plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/codecs"))
    parser.add_argument("--only", default=None, help="names of codecs with commas between; DDP and DiLoCo always run")
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the result of what is done")
    options = parser.parse_args()
    only = None if options.only is None else tuple(options.only.split(","))
    known = {*COMPRESSED, *EVERY_STEP, *TRADE}
    if only is not None and not set(only) <= known:
        parser.error(f"--only: {sorted(set(only) - known)} are none of {sorted(known)}")
    wanted = cells(options.seeds, only)
    if options.table_only:
        wanted = [cell for cell in wanted if is_done(cell, options.work_dir)]
    rows = [with_cost(row) for row in run_cells(wanted, options.work_dir, options.jobs)]
    command = f"python -m benchmarks.codecs --seeds {options.seeds}"
    path = write_result("codecs", command if only is None else f"{command} --only {options.only}", rows)
    print(write_codecs_table(path), write_codecs_plot(path))


if __name__ == "__main__":
    main()
