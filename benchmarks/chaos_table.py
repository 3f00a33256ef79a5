"""The table of benchmarks/chaos.py: one line per fault and system, its phases together."""

from __future__ import annotations

import statistics
from typing import Any

HEAD = "| fault | system | times | survived | one history | rounds lost | stall, median | worst | back after | loss |"
Rows = list[dict[str, Any]]


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [HEAD, "|---|---|---|---|---|---|---|---|---|---|"]
    groups: dict[tuple[str, str], Rows] = {}
    for row in result["rows"]:
        groups.setdefault((row["fault"], row["system"]), []).append(row)
    for (fault, system), rows in sorted(groups.items(), key=lambda one: (not one[0][1].startswith("store"), one[0])):
        lines.append(f"| {fault} | {system} | {_line(rows)} |")
    return "\n".join(lines) + "\n"


def _line(rows: Rows) -> str:
    survived = sum(row["survived"] for row in rows)
    equal = all(row["replicas_equal"] for row in rows)
    stalls, back = _known(rows, "stall_s"), _known(rows, "recovery_s")
    changes = [row["final_loss_change"] for row in rows if row["final_loss_change"] is not None]
    loss = f"{min(changes):+.1%} to {max(changes):+.1%}" if changes else ""
    cells = (
        len(rows), survived, "yes" if equal else "no", sum(row["rounds_lost"] for row in rows), _median(stalls),
        f"{max(stalls):.1f} s" if stalls else "", _median(back), loss,
    )  # fmt: skip
    return " | ".join(str(cell) for cell in cells)


def _known(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows if row[name] is not None]


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} s" if values else ""
