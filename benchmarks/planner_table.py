"""The table of benchmarks/planner.py, made from its result file."""

from __future__ import annotations

import statistics
from typing import Any

NAMES = {"fp32": "DiLoCo fp32", "int4": "DiLoCo int4", "streaming": "streaming int4, overlap"}


def planner_table(result: dict[str, Any]) -> str:
    """One line per cell; errors are relative to what was measured."""
    rows = result["rows"]
    lines = [
        "| method | Mbit/s | round trip, ms | utilisation, predicted | measured | error | own step | busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {NAMES[r['method']]} | {r['rate_mbit']:g} | {r['rtt_ms']:g} "
            f"| {r['predicted']:.1%} | {r['measured']:.1%} "
            f"| {r['error']:.1%} | {r['predicted_own_step']:.1%} | {r['busy']:.1%} |"
        )
    errors = [r["error"] for r in rows]
    own = [abs(r["predicted_own_step"] / r["measured"] - 1) for r in rows]
    step_ms = 1000 * statistics.median(r["step_s"] for r in rows)
    lines.append(
        f"\nError: median {statistics.median(errors):.1%}, worst {max(errors):.1%}; with the cell's own step "
        f"{statistics.median(own):.1%} and {max(own):.1%}. Two hosts, a step of "
        f"{step_ms:.0f} ms without a network; own step: predicted with the cell's own step time; busy: steps x the "
        f"step time without a network, over the wall-clock. "
        f"`{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"
