"""The record of a process: versions that it applied, with their digests, blocks and times, as lines of JSON.

Times are those of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowcomm.private_files import FILE_MODE

VERSION, MINE = "version", "mine"


class Recorder:
    """Writes one file, line by line; a process that is killed leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)

    def write(self, line: dict[str, Any]) -> None:
        """One line."""
        os.write(self._file, (json.dumps({**line, "at": time.monotonic()}) + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A version that a process applied."""

    version: int
    digest: str
    blocks: tuple[int, ...]
    """Data blocks of the contributions that its commit used."""
    used: int
    """Number of those contributions."""
    at: float


@dataclass(kw_only=True)
class Record:
    """What a process wrote down."""

    seen: list[Seen] = field(default_factory=list)
    mine: list[tuple[float, int]] = field(default_factory=list)
    """When contributions of its own were used, and the version that this led to."""

    @classmethod
    def read(cls, path: Path) -> Record:
        """As far as it goes; nothing where there is no file."""
        found = cls()
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            row = json.loads(line)
            if row["event"] == MINE:
                found.mine.append((row["at"], row["version"]))
            else:
                found.seen.append(Seen(
                    version=row["version"], digest=row["digest"], blocks=tuple(row["blocks"]), used=row["used"],
                    at=row["at"],
                ))  # fmt: skip
        return found
