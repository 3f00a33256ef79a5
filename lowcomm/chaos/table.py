"""The table of a chaos run on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

COLUMNS = ("run", "fault", "phase", "island", "version", "survived", "equal", "lost", "stall", "back after", "loss")

WIDTH = 110
"""Columns of text that all of it needs: a line that is broken by the terminal says more than one that is cut."""


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """One line per fault."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("fault", "phase") else "right", no_wrap=True)
    for row in rows:
        change = row["final_loss_change"]
        table.add_row(
            str(row["run"]), row["fault"], row["phase"], _or_dash(row["island"]), _or_dash(row["version"]),
            _yes(row["survived"]), _yes(row["replicas_equal"]), str(row["rounds_lost"]), _seconds(row["stall_s"]),
            _seconds(row["recovery_s"]), "-" if change is None else f"{change:+.2%}",
        )  # fmt: skip
    wide = Console(file=console.file, width=max(console.width, WIDTH))
    wide.print(table)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
