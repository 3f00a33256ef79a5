"""Membership inference: what a model that learnt its text by heart tells of it, and what noise on examples hides.

    python -m benchmarks.membership [--seeds 2] [--jobs 1]

benchmarks/membership_recipes.py; every run is a `lowcomm simulate` process of two clients that tune all of the tiny
model. AUC: probability that a sequence that was trained on scores above a held-out one (0.5: guessing); advantage:
2 AUC - 1, 0 for guessing. Means over the clients, for both attacks of `lowcomm.privacy.membership_inference`. Runs that
are done are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import Cell, run_cells, write_result_and_table
from benchmarks.membership_recipes import write_corpus

METHODS = ("plain", "noise_low", "noise_middle", "noise_high")


def cells(seeds: int) -> list[Cell]:
    """Seed by seed."""
    return [
        Cell(
            name=f"{method}-seed{seed}",
            arguments=(f"benchmarks/membership_recipes.py:{method}", "--seed", str(seed)),
            columns={"method": method, "seed": seed},
        )
        for seed in range(seeds)
        for method in METHODS
    ]


def row_of(cell: Cell, row: dict[str, Any], directory: Path) -> dict[str, Any]:
    """One run."""
    clients = json.loads((directory / "clients.json").read_text(encoding="utf-8"))
    privacy = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["privacy"]
    attacks = clients["membership"]
    return {
        **cell.columns,
        "noise_multiplier": privacy["noise_multiplier"] if privacy else None,
        "epsilon": privacy["epsilon_total"] if privacy else None,
        "delta": privacy["delta"] if privacy else None,
        "loss_before": clients["mean"]["before"],
        "loss_after": clients["mean"]["after"],
        **{f"{attack}_{figure}": value for attack, found in attacks.items() for figure, value in found.items()},
        **{f"{attack}_advantage": 2 * found["auc"] - 1 for attack, found in attacks.items()},
        **{k: row[k] for k in ("steps", "tokens", "wall_s", "commit")},
    }


def table(result: dict[str, Any]) -> str:
    """One line per method, means over seeds with the range of the AUC."""
    rows = result["rows"]
    lines = [
        "| privacy | epsilon | loss before | after | AUC by loss | AUC calibrated (range) | advantage "
        "| found at 1% false |",
        "|---" * 8 + "|",
    ]
    for method in METHODS:
        mine = [r for r in rows if r["method"] == method]
        if mine:
            lines.append(_line(mine))
    lines.append(
        f"\nNats per token on held-out text; two clients, all of the tiny model (0.12M) tuned for {rows[0]['steps']} "
        f"steps, {len({r['seed'] for r in rows})} seeds; delta 1e-5. `{result['command']}`, "
        f"{result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def _line(mine: list[dict[str, Any]]) -> str:
    def mean(column: str) -> float:
        return statistics.mean(r[column] for r in mine)

    calibrated = [r["calibrated_auc"] for r in mine]
    noise = mine[0]["noise_multiplier"]
    privacy = "none | -" if noise is None else f"noise {noise:g} | {mean('epsilon'):.1f}"
    return (
        f"| {privacy} "
        f"| {mean('loss_before'):.3f} | {mean('loss_after'):.3f} | {mean('loss_auc'):.2f} "
        f"| {mean('calibrated_auc'):.2f} ({min(calibrated):.2f} to {max(calibrated):.2f}) "
        f"| {mean('calibrated_advantage'):.2f} | {mean('calibrated_tpr_at_1pct_fpr'):.0%} |"
    )


def main() -> None:
    """Run what is missing; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/membership"))
    options = parser.parse_args()
    wanted = cells(options.seeds)
    write_corpus()
    rows = run_cells(wanted, options.work_dir, options.jobs)
    made = [row_of(cell, row, options.work_dir / cell.name) for cell, row in zip(wanted, rows, strict=True)]
    print(write_result_and_table("membership", f"python -m benchmarks.membership --seeds {options.seeds}", made, table))


if __name__ == "__main__":
    main()
