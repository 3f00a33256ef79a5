"""`lowcomm audit RUN` and `lowcomm verify RUN_A RUN_B`: their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def run_audit(arguments: Sequence[str]) -> int:
    """Compute random rounds of a run again; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="lowcomm audit", description="Compute random rounds of a run again and compare the hashes of every step."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory, trained with --step-hashes")
    parser.add_argument("--rounds", type=int, default=3, help="how many, drawn at random")
    parser.add_argument("--seed", type=int, default=None, help="draw them by this, not by the system's randomness")
    parser.add_argument("--operators", type=int, default=None, metavar="STEP", help="write the hashes of its operators")
    parser.add_argument("--island", type=int, default=0, help="whose operators")
    options = parser.parse_args(list(arguments))
    from lowcomm.verification.audit import audit, write_operators
    from lowcomm.verification.rerun import open_recorded

    run = open_recorded(options.run)
    if options.operators is not None:
        return write_operators(run, options.island, options.operators, _say)
    return audit(run, options.rounds, options.seed, _say)


def run_referee(first: Path, second: Path) -> int:
    """Decide between two runs of one specification; returns the exit code."""
    from lowcomm.verification.referee import referee
    from lowcomm.verification.rerun import open_recorded

    return referee(open_recorded(first), open_recorded(second), _say)


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
