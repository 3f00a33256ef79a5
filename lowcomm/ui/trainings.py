"""Trainings as processes: `lowcomm train` with the flags of a form, in a session of its own, its output in a file.

Each is the process that the command line would start. It goes on when the server ends, and then whoever lists the runs
next finds it by the lock of its directory.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lowcomm.private_files import FILE_MODE, make_directory
from lowcomm.types import ConfigError
from lowcomm.ui.run_list import ask_to_stop, holder

CONSOLE = "console.log"
"""What a training prints, in its run directory."""
SHOWN_BYTES = 20_000
"""Of its end."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One process that this server started."""

    process: subprocess.Popen[bytes]
    directory: Path
    arguments: tuple[str, ...]


@dataclass(kw_only=True)
class Trainings:
    """Those of this server, by the name of their run. Thread-safe."""

    started: dict[str, Training] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """What was said of those that ended before they had a run."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, directory: Path, arguments: Sequence[str]) -> None:
        """Run `lowcomm ARGUMENTS`. Raises ConfigError where a run goes on in this directory, or it can't be written."""
        name = directory.name
        with self._lock:
            if self._alive(name) or holder(directory) is not None:
                raise ConfigError(f"run {name} is going on already. Fix: stop it first")
            try:
                make_directory(directory)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
                console = os.open(directory / CONSOLE, flags, FILE_MODE)
            except OSError as error:
                raise ConfigError(f"{directory} can't be written ({error.strerror}). Fix: make it writable") from error
            try:
                os.write(console, f"$ {shlex.join(['lowcomm', *arguments])}\n".encode())
                process = subprocess.Popen(
                    [sys.executable, "-m", "lowcomm.cli", *arguments],
                    stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(console)
            self.refused.pop(name, None)
            self.started[name] = Training(process=process, directory=directory, arguments=tuple(arguments))

    def alive(self, directory: Path) -> bool:
        """Whether a run goes on in this directory, whoever started it."""
        with self._lock:
            self._bury()
            return self._alive(directory.name) or holder(directory) is not None

    def beginning(self) -> list[str]:
        """Names of those that have no run yet."""
        with self._lock:
            self._bury()
            return [n for n, t in self.started.items() if self._alive(n) and not (t.directory / "config.json").exists()]

    def stop(self, directory: Path) -> None:
        """Ask it to save and leave. Raises ConfigError where nothing goes on here that could be asked."""
        with self._lock:
            if self._alive(directory.name):
                self.started[directory.name].process.send_signal(signal.SIGTERM)  # it passes it on to all ranks
            elif not ask_to_stop(directory):
                raise ConfigError(f"run {directory.name} does not go on here. Fix: stop it where it was started")

    def left(self) -> list[str]:
        """Names of those of this server that still go on."""
        with self._lock:
            return [name for name in self.started if self._alive(name)]

    def ask(self, name: str) -> None:
        """Ask one of this server to save and leave, if it still goes on."""
        with self._lock:
            if self._alive(name):
                self.started[name].process.send_signal(signal.SIGTERM)

    def wait(self, name: str, timeout_s: float) -> bool:
        """Whether it has ended within this time."""
        try:
            self.started[name].process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _alive(self, name: str) -> bool:
        training = self.started.get(name)
        return training is not None and training.process.poll() is None

    def _bury(self) -> None:
        """Keep what a training said that ended without a run, and take away the directory that it did not use."""
        for name, training in list(self.started.items()):
            if training.process.poll() is None:
                continue
            del self.started[name]
            directory = training.directory
            if not (directory / "config.json").exists():
                self.refused[name] = console_tail(directory)
                with suppress(OSError):  # others may have put something there
                    (directory / CONSOLE).unlink(missing_ok=True)
                    directory.rmdir()


def console_tail(directory: Path) -> str:
    """The end of what a training printed; "" where it was not started by a page."""
    try:
        with (directory / CONSOLE).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - SHOWN_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.splitlines())
