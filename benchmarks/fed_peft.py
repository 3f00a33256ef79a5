"""FedPEFT: bytes, loss and stability of six ways of tuning, on unlike and alike clients, and under privacy.

    python -m benchmarks.fed_peft [--seeds 1] [--jobs 2]

recipes/fed_peft.py and benchmarks/fed_peft_recipes.py; every run is a `lowcomm simulate` process. Losses are means over
the clients' own held-out text; `spread` is their standard deviation, `helped` the share of clients that end below the
untuned model. Runs that are done are not repeated: an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import Cell, run_cells, write_result_and_table

METHODS = ("full", "lora", "dora", "ia3", "prompt", "heads", "bitfit")
SETTINGS = {
    "unlike clients": "recipes/fed_peft.py:{}",
    "alike clients": "benchmarks/fed_peft_recipes.py:{}_alike",
    "unlike, private": "benchmarks/fed_peft_recipes.py:{}_private",
}


def cells(seeds: int) -> list[Cell]:
    """Seed by seed."""
    found: list[Cell] = []
    for seed in range(seeds):
        for setting, recipe in SETTINGS.items():
            for method in METHODS:
                columns: dict[str, Any] = {"method": method, "setting": setting, "seed": seed}
                name = f"{method}-{setting.replace(', ', '-').replace(' ', '-')}-seed{seed}"
                arguments = (recipe.format(method), "--seed", str(seed))
                found.append(Cell(name=name, arguments=arguments, columns=columns))
    return found


def row_of(cell: Cell, row: dict[str, Any], directory: Path) -> dict[str, Any]:
    """One run."""
    clients = json.loads((directory / "clients.json").read_text(encoding="utf-8"))
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return {
        **cell.columns,
        "trainable": summary["parameters_trainable"],
        "bytes_up": row["bytes_sent"] / row["rounds"],
        "loss_before": clients["mean"]["before"],
        "loss_after": clients["mean"]["after"],
        "worst_10pct_loss": clients["worst_10pct"]["after"],
        "spread": clients["spread"]["after"],
        "helped": clients["helped"]["below_before"],
        "epsilon": summary["privacy"]["epsilon_total"] if summary["privacy"] else None,
        **{k: row[k] for k in ("rounds", "steps", "tokens", "commit")},
    }


def table(result: dict[str, Any]) -> str:
    """One line per method and setting, means over seeds."""
    rows = result["rows"]
    lines = [
        "| clients | tuned | parameters | KB sent per client and round | loss before | after | worst tenth | spread "
        "| helped | epsilon |",
        "|---" * 10 + "|",
    ]
    for setting in SETTINGS:
        for method in METHODS:
            mine = [r for r in rows if (r["setting"], r["method"]) == (setting, method)]
            if mine:
                lines.append(_line(setting, method, mine))
    lines.append(
        f"\nNats per token; tiny base (0.12M), 4 clients, one installed package each, or dealt at random (alike). "
        f"`{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def _line(setting: str, method: str, mine: list[dict[str, Any]]) -> str:
    def mean(column: str) -> float:
        return statistics.mean(r[column] for r in mine)

    epsilon = "-" if mine[0]["epsilon"] is None else f"{mean('epsilon'):.1f}"
    return (
        f"| {setting} | {method} | {mine[0]['trainable']:,} | {mean('bytes_up') / 1e3:,.1f} "
        f"| {mean('loss_before'):.4f} | {mean('loss_after'):.4f} "
        f"| {mean('worst_10pct_loss'):.4f} | {mean('spread'):.4f} | {mean('helped'):.0%} "
        f"| {epsilon} |"
    )


def main() -> None:
    """Run what is missing; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/fed_peft"))
    options = parser.parse_args()
    wanted = cells(options.seeds)
    rows = run_cells(wanted, options.work_dir, options.jobs)
    made = [row_of(cell, row, options.work_dir / cell.name) for cell, row in zip(wanted, rows, strict=True)]
    print(write_result_and_table("fed_peft", f"python -m benchmarks.fed_peft --seeds {options.seeds}", made, table))


if __name__ == "__main__":
    main()
