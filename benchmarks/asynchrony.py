"""Modes that never wait beside the synchronous run, at islands of unequal speed: loss against wall-clock, nano, H = 16.

    python -m benchmarks.asynchrony --tune [--jobs 2]    outer rates of each mode, on a part of the training files
    python -m benchmarks.asynchrony [--seeds 3] [--jobs 2] [--table-only]

Four islands at 1, 1, 1/2 and 1/4 of the speed, simulated on the virtual clock of `Buffered`: a second is an inner step
of the fastest island, so that how busy this machine is changes nothing. The synchronous run waits for the slowest
island in every round; the others get half its wall-clock, and their learning rate falls over that. Transfers take no
time here; `useful_time` is the share of the islands' time that is not spent waiting for other islands. Every run is a
`lowcomm simulate` process; runs that are done are not repeated, seeds are the outer loop.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Cell, is_done, run_cells, write_result_and_table

SPEEDS = (1.0, 1.0, 0.5, 0.25)
STEPS, EVERY, BATCH, SEQ_LEN = 640, 16, 4, 64
"""Of each island in the synchronous run."""
WALL_S = STEPS / min(SPEEDS)
"""Of the synchronous run."""
ROUND_TOKENS = round(sum(SPEEDS) * EVERY) * BATCH * SEQ_LEN
"""What the islands train while the fastest has a round."""
RATES = ((0.7, 0.8), (0.5, 0.5))
"""Outer learning rates and momenta that are tried for each mode."""
MORE_RATES = ((0.9, 0.3), (0.7, 0.6))
"""Those that only the synchronous run gets, which the others are measured by."""
CHOSEN = "asynchrony_tuning"


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A mode: its rule as a spec, and its outer optimizer."""

    rule: str | None
    """None: synchronous."""
    outer: str = "Nesterov"
    more: str = ""
    """Further settings of the outer optimizer."""


MODES: dict[str, Mode] = {
    "synchronous": Mode(rule=None),
    "global batch (DeDLOC)": Mode(rule=f"TokenBatch(tokens={ROUND_TOKENS})"),
    "steps by speed (HALoS), Z = 4": Mode(rule="FedBuff(size=4, even=True)"),
    "timed (FedFix)": Mode(rule=f"Timed(every_s={EVERY}.0)"),
    "Decoupled DiLoCo": Mode(rule="Decoupled()"),
    "delayed Nesterov, Z = 1": Mode(rule="FedBuff(size=1)", outer="DelayedNesterov", more=", every=4"),
    "HeLoCo, Z = 2": Mode(rule="FedBuff(size=2, turn=TurnStale())", outer="HeLoCo"),
    "dynamic backup workers": Mode(rule="BackupWorkers()"),
    "FedCompass, 4 to 16 steps": Mode(rule=f"FedCompass(least_steps={EVERY // 4}, most_steps={EVERY})"),
    "FedBuff, Z = 2": Mode(rule="FedBuff(size=2)"),
    "unbiased weights, Z = 2": Mode(rule="FedBuff(size=2, weights='unbiased', staleness='constant')"),
}


def cell(name: str, lr: float, momentum: float, seed: int, *, tuning: bool) -> Cell:
    """One run."""
    mode = MODES[name]
    steps = STEPS if mode.rule is None else round(WALL_S / 2)
    arguments = [
        *("recipes/diloco.py:pretrain_cpu", "--islands", "4", "--seed", str(seed), "--steps", str(steps)),
        *("--sync.every", str(EVERY), "--data.batch-size", str(BATCH), "--data.seq-len", str(SEQ_LEN)),
        *("--data.validation-sequences", "128", "--eval.every", str(steps // 10)),
        *("--sync.outer", f"{mode.outer}(lr={lr:g}, momentum={momentum:g}{mode.more})"),
    ]
    if mode.rule is not None:
        arguments += ["--sync.exchange", f"Buffered(rule={mode.rule}, goes_on='own', speeds={SPEEDS})"]
    if tuning:
        arguments += ["--data.tuning"]
    text = "".join(c if c.isalnum() else "-" for c in name.lower())
    suffix = f"tuning-lr{lr:g}-m{momentum:g}" if tuning else f"lr{lr:g}-m{momentum:g}-seed{seed}"
    columns = {"mode": name, "seed": seed, "outer_lr": lr, "momentum": momentum, "H": EVERY}
    return Cell(name=f"{text}-{suffix}", arguments=tuple(arguments), columns=columns)


def tune(work_dir: Path, jobs: int, table_only: bool) -> None:
    """Try the outer rates of each mode, one seed, on a part of the training files."""
    tried = [(name, rate) for rate in RATES for name in MODES] + [("synchronous", rate) for rate in MORE_RATES]
    cells = [cell(name, *rate, 0, tuning=True) for name, rate in tried]
    cells = [one for one in cells if not table_only or is_done(one, work_dir)]
    rows = run_cells(cells, work_dir, jobs)
    write_result_and_table(CHOSEN, "python -m benchmarks.asynchrony --tune", rows, tuning_table)


def chosen() -> dict[str, tuple[float, float]]:
    """Outer rate and momentum of each mode that was tuned: the best."""
    rows = json.loads((RESULTS / f"{CHOSEN}.json").read_text(encoding="utf-8"))["rows"]
    best = sorted(rows, key=lambda r: r["val_bpb"], reverse=True)
    return {row["mode"]: (row["outer_lr"], row["momentum"]) for row in best}  # the last of a mode, its best, stays


def with_clock(rows: Sequence[dict[str, Any]], work_dir: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows with the virtual wall-clock, and when each run reached the synchronous run's last loss."""
    last = {row["seed"]: row["val_bpb"] for row in rows if row["mode"] == "synchronous"}
    found: list[dict[str, Any]] = []
    for row, one in zip(rows, cells, strict=True):
        waits = row["mode"] == "synchronous"
        per_step_s = 1 / min(SPEEDS) if waits else 1.0
        useful = sum(min(SPEEDS) / v for v in SPEEDS) / len(SPEEDS) if waits else 1.0
        curve = _curve(work_dir / one.name)
        reached = [step * per_step_s for step, bpb in curve if bpb <= last.get(row["seed"], 0.0)]
        found.append(
            {
                **row,
                "virtual_wall_s": row["steps"] * per_step_s,
                "useful_time": useful,
                "reaches_sync_loss_at_s": min(reached, default=None),
                "loss_to_synchronous": row["val_bpb"] / last[row["seed"]] - 1 if row["seed"] in last else None,
                "curve": [[step * per_step_s, bpb] for step, bpb in curve],
            }
        )
    return found


def _curve(directory: Path) -> list[tuple[int, float]]:
    """Inner steps (ticks) and validation bits per byte, the end included."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    found = {e["step"]: e["val_bpb"] for e in events if e.get("val_bpb") is not None}
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return sorted({**found, summary["steps"]: summary["val_bpb"]}.items())


def tuning_table(result: dict[str, Any]) -> str:
    """Markdown: bits per byte by mode and outer rate."""
    rates = (*RATES, *MORE_RATES)
    head = [f"{lr:g} / {m:g}" for lr, m in rates]
    lines = [f"| mode | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for name in MODES:
        found = {(r["outer_lr"], r["momentum"]): r["val_bpb"] for r in result["rows"] if r["mode"] == name}
        lines.append(f"| {name} | " + " | ".join(f"{found[r]:.3f}" if r in found else "" for r in rates) + " |")
    return "\n".join(lines) + "\n"


def table(result: dict[str, Any]) -> str:
    """Markdown: one row per mode, means over seeds with their range."""
    lines = [
        "| mode | outer rate, momentum | wall-clock | useful time | bits per byte | reaches the synchronous loss |",
        "|---|---|---|---|---|---|",
    ]
    for name in MODES:
        rows = [r for r in result["rows"] if r["mode"] == name]
        if not rows:
            continue
        bpb = [r["val_bpb"] for r in rows]
        at = [r["reaches_sync_loss_at_s"] for r in rows if r["reaches_sync_loss_at_s"] is not None]
        when = f"{len(at)} of {len(rows)}" + (f", at most after {max(at):,.0f} s" if at else "")
        first = rows[0]
        lines.append(
            f"| {name} | {first['outer_lr']:g}, {first['momentum']:g} | {first['virtual_wall_s']:,.0f} s "
            f"| {first['useful_time']:.0%} | {sum(bpb) / len(bpb):.3f} ({min(bpb):.3f} to {max(bpb):.3f}) | {when} |"
        )
    seeds = len({r["seed"] for r in result["rows"]})
    return "\n".join(lines) + f"\n\nNano, at most {seeds} seeds; a second is an inner step of the fastest island.\n"


def main() -> None:
    """Run what is missing; write benchmarks/results/asynchrony.json and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="choose the outer rates instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/asynchrony"))
    parser.add_argument("--table-only", action="store_true", help="run nothing: write the result of what is done")
    options = parser.parse_args()
    if options.tune:
        tune(options.work_dir, options.jobs, options.table_only)
        return
    rates = chosen()
    cells = [
        cell(name, *rates[name], seed, tuning=False) for seed in range(options.seeds) for name in MODES if name in rates
    ]
    if options.table_only:
        cells = [one for one in cells if is_done(one, options.work_dir)]
    rows = with_clock(run_cells(cells, options.work_dir, options.jobs), options.work_dir, cells)
    write_result_and_table("asynchrony", f"python -m benchmarks.asynchrony --seeds {options.seeds}", rows, table)


if __name__ == "__main__":
    main()
