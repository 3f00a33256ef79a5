"""Processes that are forked from one that has imported everything: seconds less for each start, else the real thing.

Each is the leader of a session of its own, writes on a log of its own, and writes the stacks of its threads on SIGQUIT.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lowcomm.private_files import FILE_MODE
from lowcomm.run.signals import STOPPING


@dataclass(kw_only=True)
class Process:
    """One that was started."""

    name: str
    island: int | None
    """Its number; None: no island of the plan."""
    pid: int
    log: Path
    stacks: Path
    record: Path
    directory: Path
    """Of its run."""
    legal: set[int] = field(default_factory=lambda: {0})
    """Exit codes that are no failure."""
    code: int | None = None
    """Its exit code, negative: the signal that killed it; None: it runs."""
    cpu_s: float = 0.0

    def poll(self) -> int | None:
        """The exit code, as far as it has ended."""
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code, self.cpu_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        return self.code

    def send(self, number: int) -> None:
        """A signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(name: str, work: Callable[[Path], int], place: Path, *, directory: Path, island: int | None = None) -> Process:
    """Start a process that ends with the code of `work`, which gets the file for its record."""
    log, stacks, record = (place.with_name(f"{place.name}.{end}") for end in ("log", "stacks", "record"))
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        _be(lambda: work(record), log, stacks)
    return Process(name=name, island=island, pid=pid, log=log, stacks=stacks, record=record, directory=directory)


def _be(work: Callable[[], int], log: Path, stacks: Path) -> None:
    """The rest of the child's life."""
    code = 70
    try:
        os.setsid()
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        faulthandler.register(signal.SIGQUIT, os.open(stacks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE))
        import torch

        torch.set_num_threads(1)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
