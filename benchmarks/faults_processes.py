"""`lowcomm train` and its islands as processes forked from one that has imported everything: seconds less for each run.

Otherwise they are what the command line starts: a launcher, its supervisor, one process per island.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from lowcomm.run import ranks
from lowcomm.run.signals import STOPPING

HEAVY = ("lowcomm.trainer", "lowcomm.cli", "lowcomm.report.html", "transformers.models.llama.modeling_llama", "tyro")


class Forked:
    """A child that runs the command line; what the supervisor uses of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], start_new_session: bool = True) -> None:
        sys.stdout.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _be(command[command.index("lowcomm.cli") + 1 :], env)

    def poll(self) -> int | None:
        """The exit code; None: it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """The exit code, when it has ended."""
        code = self._wait(0)
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """A signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _be(arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """The rest of the child's life."""
    code = 1
    try:
        os.setsid()
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(env)
        handle = os.open(env["FAULT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if "RANK" in env:
            Path(f"{env['FAULT_AT']}-pid{env['RANK']}").write_text(str(os.getpid()), encoding="utf-8")
        from lowcomm.cli import main

        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare() -> None:
    """Import what runs need, and let supervisors fork."""
    for module in HEAVY:
        importlib.import_module(module)
    ranks.subprocess = SimpleNamespace(Popen=Forked)  # pyright: ignore[reportAttributeAccessIssue]
