"""What the terminal shows of members that have ended: one table, one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lowcomm.report.console import show_runs
from lowcomm.types import ConfigError


def show_left_behind(directories: Sequence[Path], code: int) -> int:
    """The exit code, once the members that left something are shown; nothing where the run failed."""
    there = [d for d in directories if (d / "summary.json").exists()]
    if code == 0 and there:
        try:
            show_runs(there)
        except ConfigError as error:
            Console().print(f"no HTML report: {error}", soft_wrap=True, markup=False)
    return code
