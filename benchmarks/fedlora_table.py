"""The table of benchmarks/results/fedlora.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHOWN = ("not tuned", "each client alone", "LoRA on the pooled text", "FedIT", "FedEx-LoRA", "FedSA-LoRA", "CELLM")
"""Methods on the tiny base that the README shows; of the real model it shows all."""


def fedlora_summary(result: dict[str, Any]) -> str:
    """The README's part of the table."""
    rows = [r for r in result["rows"] if r["model"] != "tiny base" or r["method"] in SHOWN]
    return fedlora_table({**result, "rows": rows})


def write_fedlora_table(path: Path) -> Path:
    """benchmarks/results/fedlora.md."""
    target = path.with_suffix(".md")
    target.write_text(fedlora_table(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    return target


def fedlora_table(result: dict[str, Any]) -> str:
    """Means over seeds, by model, baselines first; the loss also against FedIT's, seed by seed."""
    lines = [
        "| model | method | loss, clients' mean | min to max over seeds | worst tenth | aggregation error "
        "| payload, KB a round | epsilon |",
        "|---" * 8 + "|",
    ]
    rows = result["rows"]
    for model in dict.fromkeys(r["model"] for r in rows):
        here = [r for r in rows if r["model"] == model]
        ordered = sorted(here, key=lambda r: r["rounds"] is not None)
        lines += [_line(model, m, [r for r in here if r["method"] == m]) for m in dict.fromkeys(_names(ordered))]
    seeds = len({r["seed"] for r in rows})
    lines.append(
        f"\nNats per token on each client's own held-out text, by the model that the client has at the end; "
        f"{rows[0]['islands']} clients, one installed package each; {seeds} seeds on the tiny base (0.12M), one on "
        "SmolLM2. Payload: what one client would upload to a server in a round; without a backward pass, 100 "
        "steps count as a round. "
        f"`{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return [r["method"] for r in rows]


def _line(model: str, method: str, mine: list[dict[str, Any]]) -> str:
    losses = [r["own_val_loss"] for r in mine]
    spread = f"{min(losses):.4f} to {max(losses):.4f}" if len(losses) > 1 else "-"
    steps = 100 if mine[0]["exchanges"] == mine[0]["steps"] else 1
    return (
        f"| {model} | {method} | {statistics.mean(losses):.4f} | {spread} "
        f"| {_mean(mine, 'worst_10pct_loss', lambda v: f'{v:.4f}')} "
        f"| {_mean(mine, 'aggregation_error', lambda v: f'{v:.1e}')} "
        f"| {_mean(mine, 'payload_bytes', lambda v: f'{v * steps / 1e3:,.1f}')} "
        f"| {_mean(mine, 'epsilon', lambda v: f'{v:.1f}')} |"
    )


def _mean(rows: list[dict[str, Any]], column: str, form: Callable[[float], str]) -> str:
    values = [r[column] for r in rows if r[column] is not None]
    return form(statistics.mean(values)) if values else "-"
