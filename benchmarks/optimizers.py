"""Outer and inner rules beside plain DiLoCo at equal tokens and H = 32: does any lower the loss, and by how much?

    python -m benchmarks.optimizers [--seeds 3] [--steps 1280] [--jobs 1] [--table-only]

The nano preset, 4 islands, on a part of the training files (`data.tuning`): the reported validation files are never
looked at. Seed 0 runs every setting; later seeds only the best one of each method, and of methods that were not more
than 1 % behind DiLoCo then. Beside them DDP and one island alone, whose difference is what can be recovered. "H grows":
from one step to 128, with as many syncs as H = 32 has. Every run is a `lowcomm simulate --batched` process. Runs that
are done are not repeated: an interrupted call goes on.

Writes benchmarks/results/optimizers.json and optimizers.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Cell, is_done, run_cells, write_result_and_table
from lowcomm.presets import momentum_for

EVERY = 32
DDP, ALONE, BASE = "DDP", "one island alone", "DiLoCo"
BEHIND = 0.01
"""A method that is so far behind DiLoCo with seed 0 is not run with others."""
Settings = tuple[str, ...]
"""Flags of one run."""


def methods(rounds: int) -> dict[str, tuple[Settings, ...]]:
    """What is tried of each method, in runs of so many rounds."""
    usual = momentum_for(rounds)
    grown = (
        "--sync.every",
        "1",
        "--sync.schedule",
        f"Growing(growth={growth(rounds * EVERY, rounds, 128)}, longest=128)",
    )
    common = ("--sync.moments", "DesLoc(first_every=None, second_every=1)")
    eighth, late = max(1, rounds // 8), rounds - max(1, rounds // 4)
    return {
        BASE: _outer(f"Nesterov(lr=0.7, momentum={usual})", "SGD(lr=1.0)"),
        "Pier": _outer(
            f"Pier(lr=0.7, momentum=0.8, warmup_rounds={4 * eighth})",
            f"Pier(lr=0.7, momentum=0.8, warmup_rounds={2 * eighth}, decay_from={late}, decay_rounds={rounds - late})",
        ),
        "H grows": tuple(
            (*grown, *outer) for outer in _outer("SGD(lr=1.0)", f"Pier(momentum=0.8, warmup_rounds={late})")
        ),
        "Schedule-Free outer": _outer("ScheduleFree(lr=1.0, beta=0.5)", "ScheduleFree(lr=2.0, beta=0.8)"),
        "Lion outer": _outer("Lion(lr=0.003)", "Lion(lr=0.01)"),
        "DES-LOC": (("--sync.moments", "DesLoc()", *_of(usual)),),
        "GPA inside": tuple(
            ("--inner.optimizer", f"Gpa(lr={lr}, average={share})", *_of(usual))
            for lr, share in ((3e-3, 0.9), (6e-3, 0.9))
        ),
        "SAVIC inside": tuple(
            ("--inner.optimizer", f"Savic(lr={lr}, scale_every={EVERY})", *common, *_of(usual)) for lr in (3e-4, 1e-3)
        ),
        "EDiT": (("--sync.aggregator", "EDiT(warmup_rounds=10, sharpness=0.1)", *_of(usual)),),
    }


def growth(steps: int, rounds: int, longest: int) -> float:
    """By which a period grows from 1, so that so many rounds end within so many steps; to 0.001."""
    found = 1.0
    for thousandth in range(1001):
        found = 1 + thousandth / 1000
        at = [min(longest, math.floor(found**k + 1e-9)) for k in range(rounds)]
        if sum(at) >= steps:
            break
    return found


def _outer(*texts: str) -> tuple[Settings, ...]:
    return tuple(("--sync.outer", text) for text in texts)


def _of(momentum: float) -> Settings:
    return ("--sync.outer", f"Nesterov(lr=0.7, momentum={momentum})")


def cell(method: str, number: int, settings: Settings, seed: int, steps: int) -> Cell:
    """One run."""
    recipe, islands = ("ddp" if method in (DDP, ALONE) else "diloco"), (1 if method == ALONE else 4)
    arguments = (
        *(f"recipes/{recipe}.py:pretrain_cpu", "--data.tuning", "--eval.every", "None", "--seed", str(seed)),
        *("--steps", str(steps), "--islands", str(islands), "--sync.every", str(EVERY), *settings),
        *(("--batched",) if islands > 1 else ()),
    )
    key = "".join(c if c.isalnum() else "-" for c in method.lower())
    text = " ".join(s for s in settings if not s.startswith("--"))
    columns = {"method": method, "settings": text, "H": EVERY if settings else None, "seed": seed}
    return Cell(name=f"{steps}-{key}-{number}-seed{seed}", arguments=arguments, columns=columns)


def cells(seed: int, steps: int, best: dict[str, int] | None) -> list[Cell]:
    """Of one seed; best: the setting of each method that later seeds run, by number; None: all."""
    found = [cell(DDP, 0, (), seed, steps), cell(ALONE, 0, (), seed, steps)]
    for method, tried in methods(steps // EVERY).items():
        for number, settings in enumerate(tried):
            if best is None or best.get(method) == number:
                found.append(cell(method, number, settings, seed, steps))
    return found


def best_of(work_dir: Path, steps: int) -> dict[str, int]:
    """The setting of each method with the least loss of seed 0, by number; of those that are done."""
    found: dict[str, int] = {}
    most = math.inf
    for method, tried in methods(steps // EVERY).items():
        made = [(n, cell(method, n, settings, 0, steps)) for n, settings in enumerate(tried)]
        losses = {n: _loss(c, work_dir) for n, c in made if is_done(c, work_dir)}
        if not losses:
            continue
        number = min(losses, key=lambda n: losses[n])
        if method == BASE:
            most = (1 + BEHIND) * losses[number]
        if losses[number] <= most:
            found[method] = number
    return found


def _loss(one: Cell, work_dir: Path) -> float:
    return json.loads((work_dir / one.name / "summary.json").read_text(encoding="utf-8"))["val_bpb"]


def optimizers_table(result: dict[str, Any]) -> str:
    """One line per method at its best setting; seed 0's other settings below."""
    rows = result["rows"]
    lines = [
        "| method | settings | bits per byte, mean | min to max | against DiLoCo | of (alone - DDP) recovered "
        "| MB sent per island |",
        "|---|---|---|---|---|---|---|",
    ]
    at = {(r["method"], r["settings"], r["seed"]): r["val_bpb"] for r in rows}
    counts: dict[str, list[str]] = {}
    for r in rows:
        counts.setdefault(r["method"], []).append(r["settings"])
    best = {method: max(dict.fromkeys(found), key=found.count) for method, found in counts.items()}
    first = list(best.items())
    others = [pair for pair in dict.fromkeys((r["method"], r["settings"]) for r in rows) if pair not in first]
    for method, settings in [*first, *others]:
        mine = [r for r in rows if (r["method"], r["settings"]) == (method, settings)]
        lines.append(_line(mine, at, best.get(BASE, "")))
    one = rows[0]
    lines.append(
        f"\n{one['parameters']:,} parameters, {max(r['islands'] for r in rows)} islands, {one['steps']} inner steps of "
        f"H = {EVERY}, on the tuning split; against DiLoCo with the same seed. `{result['command']}`, "
        f"{result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def _line(mine: Sequence[dict[str, Any]], at: dict[tuple[str, str, int], float], base: str) -> str:
    bpb = [r["val_bpb"] for r in mine]
    against: list[float] = []
    shares: list[float] = []
    for r in mine:
        diloco, ddp, alone = (
            at.get(k) for k in ((BASE, base, r["seed"]), (DDP, "", r["seed"]), (ALONE, "", r["seed"]))
        )
        against += [] if diloco is None else [r["val_bpb"] / diloco - 1]
        shares += [] if ddp is None or alone is None else [(alone - r["val_bpb"]) / (alone - ddp)]
    cells_ = [
        f"{mine[0]['method']}{'' if len(mine) > 1 else ' (1 seed)'}",
        f"`{mine[0]['settings']}`" if mine[0]["settings"] else "-",
        f"{statistics.mean(bpb):.4f}",
        f"{min(bpb):.4f} to {max(bpb):.4f}",
        f"{statistics.mean(against):+.2%}" if against else "-",
        f"{statistics.mean(shares):.0%}" if shares else "-",
        f"{statistics.mean(r['bytes_sent'] for r in mine) / 1e6:,.1f}",
    ]
    return f"| {' | '.join(cells_)} |"


def main() -> None:
    """Run what is missing; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1280)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/optimizers"))
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the result of what is done")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        best = None if seed == 0 else best_of(options.work_dir, options.steps)
        wanted = cells(seed, options.steps, best)
        if options.table_only:
            wanted = [c for c in wanted if is_done(c, options.work_dir)]
        rows += run_cells(wanted, options.work_dir, options.jobs)
    command = f"python -m benchmarks.optimizers --seeds {options.seeds} --steps {options.steps}"
    print(write_result_and_table("optimizers", command, rows, optimizers_table))


if __name__ == "__main__":
    main()
