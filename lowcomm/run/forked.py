"""Ranks of one machine as forks of a process that has imported what they need: a start pays for one import, not N.

Importing torch's and transformers' modules takes some seconds of a core, in each of N processes that start at once.
Only a process with one thread, on Linux and without a GPU may fork: no other thread's lock is held in the child, and
no CUDA context is torn in two. Where that is not so, ranks are started anew (`lowcomm/run/ranks.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from lowcomm.run.preload import preload
from lowcomm.run.signals import STOPPING

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
Body = Callable[[], int]
"""What a child does; returns its exit code."""


def may_fork() -> bool:
    """Whether this process can be copied as it is."""
    if not sys.platform.startswith("linux") or any(Path(gpu).exists() for gpu in _GPUS):
        return False
    return len(list(Path("/proc/self/task").iterdir())) == 1


class Forked:
    """A child, with what `subprocess.Popen` offers of it."""

    def __init__(self, body: Body, settings: Mapping[str, str], name: str) -> None:
        """Start it. settings: environment variables; name: what `ps -o comm` shows, 15 bytes of it."""
        sys.stdout.flush()
        sys.stderr.flush()
        context = multiprocessing.get_context("fork")
        self._process: BaseProcess = context.Process(target=_run, args=(body, settings, name))
        blocked = signal.pthread_sigmask(
            signal.SIG_BLOCK, STOPPING
        )  # one that comes at once finds the child's handlers
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None: it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Exit code, once it has ended."""
        self._process.join()
        code = self.poll()
        assert code is not None
        return code


def _run(body: Body, settings: Mapping[str, str], name: str) -> None:
    """In the child: what a new program would start with, then the body."""
    os.setsid()  # Ctrl-C reaches it from its supervisor only, once
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.environ.update(settings)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test's own stream
            stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    threads = settings.get("OMP_NUM_THREADS")
    if threads is not None:
        import torch  # imported before the variable was set

        torch.set_num_threads(int(threads))
    code = body()
    if code == 1:  # threads of a broken group would abort a rank that failed, after its last line
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def ask(question: Callable[[], Sequence[int]], guarded: Callable[[Body], int]) -> tuple[int, list[int]]:
    """What a child finds, so that its threads and its memory stay its own, and its exit code; meanwhile: `preload`.

    guarded: runs what it is given, says what went wrong, and returns the exit code. The numbers are worthless unless it
    is 0.
    """
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)

    def answer() -> int:
        there.send_bytes(json.dumps(question()).encode())
        return 0

    def body() -> int:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return guarded(answer)

    child = Forked(body, {}, "check")
    try:
        there.close()
        preload()
        try:
            found: list[int] = json.loads(here.recv_bytes())
        except EOFError:  # it has said why
            found = []
        code = child.wait()
    finally:
        here.close()
        child.kill()
    return code if code >= 0 else 1, found
