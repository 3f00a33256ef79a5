"""The runs below one directory, and what each is doing. Nothing is remembered: the directories say all.

A run is named by what is listed here, and by nothing else: no path of a request is ever opened.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lowcomm.types import ConfigError

LOCKS = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True)
class RunList:
    """Directories directly below `root` with a config.json; links that lead elsewhere are left out."""

    root: Path

    def names(self) -> list[str]:
        """The newest first."""
        found = [(path.stat().st_mtime_ns, path.parent.name) for path in self._configs()]
        return [name for _, name in sorted(found, reverse=True)]

    def _configs(self) -> Iterator[Path]:
        if not self.root.is_dir():
            return
        for path in self.root.iterdir():
            config = path / "config.json"
            if not path.is_symlink() and path.is_dir() and config.is_file():
                yield config

    def directory(self, name: str) -> Path:
        """Raises ConfigError for a name that is not listed."""
        if name not in {path.parent.name for path in self._configs()}:
            raise ConfigError(
                f"run = {name[:80]!r} is not allowed: one of those in {self.root}. Fix: choose a listed one"
            )
        return self.root / name


def holder(directory: Path) -> int | None:
    """The process that holds the run's lock: its rank 0. None: nobody here does (Linux says so; elsewhere always None).

    Looked up in the kernel's own list: to try the lock could refuse a run that starts in the same moment.
    """
    lock = directory / ".lock"
    try:
        facts = lock.stat()
        lines = LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for words in (line.split() for line in lines):
        if len(words) > 5 and words[1] == "FLOCK" and words[3] == "WRITE" and words[5].endswith(f":{facts.st_ino}"):
            number = int(words[4])
            if number > 0 and _has_open(number, facts):
                return number
    return None


def _has_open(process: int, facts: os.stat_result) -> bool:
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(entry.stat(), facts):
                    return True
    return False


def ask_to_stop(directory: Path) -> bool:
    """Ask the rank that holds the run's lock to save and leave, as the others then do. False: there is none here."""
    process = holder(directory)
    if process is None:
        return False
    try:
        handle = os.pidfd_open(process)
    except (OSError, AttributeError):
        return False
    try:
        if holder(directory) != process:  # its number may be another's by now; the handle is not
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
