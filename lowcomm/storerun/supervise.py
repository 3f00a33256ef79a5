"""Islands of one machine, each a process of its own: one that dies takes no other with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lowcomm.report.console import show_runs
from lowcomm.run.forked import Forked
from lowcomm.run.ranks import SUPERVISOR, Process
from lowcomm.run.signals import caught
from lowcomm.types import ConfigError

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Island:
    """One island to start."""

    name: str
    directory: Path
    arguments: list[str]
    """Of `lowcomm`."""
    threads: int


def supervise(islands: Sequence[Island], body: Callable[[Island], int] | None = None) -> int:
    """Run them to their ends; signals are passed on. 0: one of them saw the run's end.

    body: what an island does, done by copies of this process; None: by processes that are started anew.
    """
    processes: list[Process] = []
    with caught() as signals:
        try:
            for island in islands:
                processes.append(_start(island, body))
            codes = _watch(islands, processes, signals)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    if 0 in codes:
        return 0
    if set(codes) == {2}:
        return 2
    return 3 if set(codes) <= {3} else 1


def _start(island: Island, body: Callable[[Island], int] | None) -> Process:
    variables = {"OMP_NUM_THREADS": str(island.threads), SUPERVISOR: str(os.getpid())}
    if body is not None:
        return Forked(lambda: body(island), variables, island.name)
    command = [sys.executable, "-u", "-m", "lowcomm.cli", *island.arguments]
    return subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True)


def _watch(islands: Sequence[Island], processes: Sequence[Process], signals: Sequence[int]) -> list[int]:
    passed, told = 0, set[int]()
    while True:
        codes = [process.poll() for process in processes]
        for number, code in enumerate(codes):
            if code is not None and code < 0 and number not in told:
                told.add(number)
                cause = signal.Signals(-code).name
                print(
                    f"lowcomm: {islands[number].name} was killed by {cause}: the run goes on without it, and what "
                    "it had contributed stays",
                    file=sys.stderr,
                )
        if all(code is not None for code in codes):
            return [code for code in codes if code is not None]
        for _ in signals[passed:]:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            passed += 1
        time.sleep(POLL_S)


def show_left_behind(directories: Sequence[Path], code: int) -> int:
    """The exit code, once the members that left something are shown; nothing where the run failed."""
    there = [d for d in directories if (d / "summary.json").exists()]
    if code == 0 and there:
        try:
            show_runs(there)
        except ConfigError as error:
            Console().print(f"no HTML report: {error}", soft_wrap=True, markup=False)
    return code
