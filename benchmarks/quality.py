"""Validation bits per byte at equal tokens: DDP beside DiLoCo at H = 16, 32, 64, DiLoCo after a DDP warm-up, and other
inner optimizers (MuLoCo, SOAP, Lion).

    python -m benchmarks.quality --preset nano [--seeds 3] [--jobs 2] [--only METHOD] [--table-only]
    python -m benchmarks.quality --preset tiny

Every run is a `lowcomm simulate` process; bytes are counted by its transport. The outer momentum was chosen by number
of rounds in benchmarks/tuning.py, on training files. Runs that are done are not repeated: an interrupted call goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import Cell, known_rows, run_cells, write_result
from benchmarks.tables import write_quality_table
from lowcomm.presets import momentum_for

PRESETS = {
    # steps, sequence length in tokens, validation sequences
    "nano": (5120, 64, 512),
    "tiny": (2560, 128, 256),
}
COMPILE = {"nano": (), "tiny": ("--model.compile",)}
"""Compiled steps are a seventh faster on tiny; nano ends before that pays for the compilation."""
PERIODS = (32, 16, 64)
WARMUP, WARMUP_MOMENTUM = "DDP warm-up, DiLoCo H=32", 0.8
INSIDE = {
    "MuLoCo H=32": "muloco.py:pretrain_cpu",
    "MuLoCo 2-bit H=32": "muloco.py:two_bit",
    "SOAP inside H=32": "shampoo.py:pretrain_cpu",
    "Lion inside H=32": "lion.py:pretrain_cpu",
}
"""Recipes with another inner optimizer, by method; their rates are from benchmarks/tuning_inner.py."""


def cells(preset: str, seeds: int) -> list[Cell]:
    """Seed by seed, so that an interrupted call leaves whole columns."""
    return [cell for seed in range(seeds) for cell in _one_seed(preset, seed)]


def _one_seed(preset: str, seed: int) -> list[Cell]:
    steps, seq_len, sequences = PRESETS[preset]
    shared = (
        *("--model.preset", preset, "--steps", str(steps), "--seed", str(seed), "--data.seq-len", str(seq_len)),
        *("--data.validation-sequences", str(sequences), "--eval.every", str(steps // 10)),
        *COMPILE[preset],
    )
    found = [_cell(preset, seed, "DDP", None, None, ("recipes/ddp.py:pretrain_cpu", *shared))]
    for every in PERIODS:
        momentum = momentum_for(steps // every)
        sync = ("--sync.every", str(every), "--sync.outer.momentum", str(momentum))
        found.append(
            _cell(
                preset, seed, f"DiLoCo H={every}", every, momentum, ("recipes/diloco.py:pretrain_cpu", *shared, *sync)
            )
        )
    if preset == "nano":
        warmup = steps // 10
        sync = ("--sync.outer.momentum", str(WARMUP_MOMENTUM), "--sync.schedule.warmup-steps", str(warmup))
        found.append(_cell(preset, seed, WARMUP, 32, WARMUP_MOMENTUM, ("recipes/diloco.py:warmup", *shared, *sync)))
        found += [_inside(seed, method, recipe, shared) for method, recipe in INSIDE.items()]
    return found


def _inside(seed: int, method: str, recipe: str, shared: tuple[str, ...]) -> Cell:
    momentum = momentum_for(PRESETS["nano"][0] // 32)
    arguments = (f"recipes/{recipe}", *shared, "--sync.every", "32", "--sync.outer.momentum", str(momentum))
    return _cell("nano", seed, method, 32, momentum, arguments)


def _cell(
    preset: str, seed: int, method: str, every: int | None, momentum: float | None, arguments: tuple[str, ...]
) -> Cell:
    name = f"{preset}-{method.replace(' ', '').replace(',', '-').replace('=', '')}-m{momentum}-seed{seed}"
    columns: dict[str, Any] = {"preset": preset, "method": method, "H": every, "momentum": momentum, "seed": seed}
    return Cell(name=name, arguments=arguments, columns=columns)


def main() -> None:
    """Run what is missing and write benchmarks/results/quality_PRESET.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/quality"))
    parser.add_argument("--only", action="append", default=None, help="a method: run it, write nothing; several times")
    parser.add_argument("--table-only", action="store_true", help="run nothing: write what is known")
    options = parser.parse_args()
    wanted = cells(options.preset, options.seeds)
    if options.only is not None:
        run_cells([c for c in wanted if c.columns["method"] in options.only], options.work_dir, options.jobs)
        return
    if not options.table_only:
        run_cells(wanted, options.work_dir, options.jobs)
    rows = known_rows(f"quality_{options.preset}", wanted, options.work_dir)
    command = f"python -m benchmarks.quality --preset {options.preset} --seeds {options.seeds}"
    path = write_result(f"quality_{options.preset}", command, rows)
    print(write_quality_table(path))


if __name__ == "__main__":
    main()
