"""Ranks of one machine: starts or forks a process for each, passes signals on, and leaves none behind.

No rendezvous listens: the ranks find each other through a FileStore in a directory that only this user can enter; of
several machines (lowcomm/run/node.py) the directory has the address and the secret of theirs. One rank that fails ends
the others, which save; one that a signal kills does not where the others can go on, nor one that they have left behind.
`python -m lowcomm.run.ranks COUNT ARGUMENTS` runs `lowcomm ARGUMENTS`.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowcomm.run.forked import Body, Forked, may_fork
from lowcomm.run.left_behind import left_behind, lost_of
from lowcomm.run.preload import preload
from lowcomm.run.signals import caught

POLL_S = 0.05
STOP_S = 120.0
"""What a save may take after a signal; a rank that takes longer is killed."""
SUPERVISOR = "LOWCOMM_SUPERVISOR"
"""Variable with the process id of what started a rank."""
STORE = "LOWCOMM_STORE"
"""Variable with the path of the ranks' FileStore, or of the file that names the rendezvous of several machines."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the ranks ended; negative codes are signals, as in `subprocess`."""

    failed: Mapping[int, int]
    """Exit codes, by rank, of those that failed before the others were asked to stop."""
    codes: Mapping[int, int]
    """Exit codes of all ranks."""
    signal: int | None
    """The signal that came before any rank had failed."""
    lost: Mapping[int, int] = field(default_factory=dict)
    """Exit codes, by rank, of those without which the others went on."""

    @property
    def code(self) -> int:
        """One for all: 0 done, 2 bad input, 3 stopped with everything saved, else 1."""
        codes = {code for rank, code in self.codes.items() if rank not in self.lost}
        if not codes:
            return 1 if self.lost else 3  # 3: the signal came before there was a rank
        if self.failed and set(self.failed.values()) == {2}:
            return 2  # the others may have been asked to stop before they had come as far
        return 0 if codes <= {0} else 3 if codes <= {0, 3} else 1


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the ranks of this machine find all others."""

    first_rank: int
    ranks: int
    """Of all machines."""
    store: Path


Process = subprocess.Popen[bytes] | Forked
Prepare = Callable[[Path, Sequence[int]], Start | None]
"""Finds the other machines, given a private directory and the signals that have come; None: one came first."""


def run_ranks(
    count: int,
    arguments: Sequence[str],
    settings: Mapping[str, str],
    prepare: Prepare | None = None,
    body: Body | None = None,
) -> Ended:
    """Run `lowcomm ARGUMENTS` in `count` processes to their end. settings: environment variables for them.

    prepare: where this is one of several machines; what it raises is passed on. body: what `lowcomm ARGUMENTS` does,
    done by copies of this process; None: by processes that are started anew.
    """
    processes: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="lowcomm-") as directory, caught() as signals:  # mode 0700
        try:
            alone = Start(first_rank=0, ranks=count, store=Path(directory) / "store")
            start = alone if prepare is None else prepare(Path(directory), signals)
            for rank in range(count):
                if signals or start is None:
                    break
                variables = {**settings, **_rank_variables(rank, count, start)}
                processes.append(
                    _start(arguments, variables) if body is None else Forked(body, variables, f"rank {rank}")
                )
            return _watch(processes, signals, Path(directory), 0 if start is None else start.first_rank)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _start(arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", "lowcomm.cli", *arguments]
    # a session of its own: Ctrl-C reaches the ranks from here only, once
    return subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True)


def follow_supervisor() -> None:
    """In a rank or an island: be asked to save and leave when what started it is gone, torchrun too. Else nothing."""
    if not {"RANK", SUPERVISOR} & set(os.environ) or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    expected = os.environ.get(SUPERVISOR)
    if expected is not None and os.getppid() != int(expected):  # it went before that was set
        os.kill(os.getpid(), signal.SIGTERM)


def _rank_variables(rank: int, count: int, start: Start) -> dict[str, str]:
    world = {"RANK": str(start.first_rank + rank), "WORLD_SIZE": str(start.ranks)}
    here = {**world, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    return {**here, STORE: str(start.store), SUPERVISOR: str(os.getpid()), "TORCH_GLOO_LAZY_INIT": "0"}


def _watch(processes: Sequence[Process], signals: Sequence[int], directory: Path, first_rank: int = 0) -> Ended:
    failed: dict[int, int] = {}
    lost: dict[int, int] = {}
    came: int | None = None
    deadline: float | None = None
    while True:
        codes = {rank: process.poll() for rank, process in enumerate(processes, first_rank)}
        ended = {rank: code for rank, code in codes.items() if code is not None}
        if deadline is None:
            unknown = {rank: code for rank, code in ended.items() if code != 0 and rank not in lost}
            lost |= lost_of(unknown, directory) if unknown else {}
            failed = {rank: code for rank, code in unknown.items() if rank not in lost}
            came = signals[0] if signals and not failed else None
            if failed or came is not None:
                deadline = time.monotonic() + STOP_S
                _send(processes, signal.SIGTERM)
        elif time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        left = [rank for rank, code in codes.items() if code is None]
        if left and set(left) <= left_behind(directory, first_rank + len(processes)):
            # a frozen process hears of nothing
            lost |= dict.fromkeys(left, -signal.SIGKILL)
            for rank in left:
                processes[rank - first_rank].kill()
                ended[rank] = processes[rank - first_rank].wait()
        if len(ended) == len(processes):
            return Ended(failed=failed, codes=ended, signal=came, lost=lost)
        time.sleep(POLL_S)


def _send(processes: Sequence[Process], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def main(arguments: Sequence[str]) -> int:
    """COUNT ARGUMENTS, from launch/node.sh, which has looked at them; returns the exit code."""
    count, words = int(arguments[0]), list(arguments[1:])
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads: none is needed, and with them nothing forks

    def rank() -> int:
        sys.argv = ["lowcomm", *words]
        runpy.run_module("lowcomm.cli", run_name="__main__")
        return 0

    if may_fork():
        preload()
    return run_ranks(count, words, {}, None, rank if may_fork() else None).code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
