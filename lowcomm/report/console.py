"""What the terminal shows of runs that have ended: the table, and where the report is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lowcomm.report.load import load_run
from lowcomm.report.table import summary_table
from lowcomm.types import ConfigError

WIDEST = 1000
"""Columns that a table may have: names are not cut to the width of a terminal."""


def show_run(directory: Path) -> None:
    """The table and the report of a run that is done; a report that can't be made is no failure of the run."""
    try:
        show_runs([directory])
    except ConfigError as error:
        Console().print(f"no HTML report: {error}", soft_wrap=True, markup=False)


def show_runs(directories: Sequence[Path], out: Path | None = None) -> None:
    """The table of runs and one report of them all. Raises ConfigError. out: its file; None: in the first directory."""
    from lowcomm.report.html import write_report

    table = summary_table([load_run(directory) for directory in directories])
    needed = Console(width=WIDEST).measure(table).maximum
    console = Console(width=max(Console().width, needed))
    console.print(table)
    console.print(f"report: {write_report(list(directories), out)}", soft_wrap=True, highlight=False)
