"""Ordered logs of payloads: whoever reads one from the same position reads the same entries in the same order.

`MemoryLog` for islands simulated in one process; `DirectoryLog` for real processes that share a file system and have
no coordinator: a file per entry, whose number is its position. Files are private (0600, their directory 0700).
"""

from __future__ import annotations

import itertools
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from lowcomm.types import ConfigError, SyncError


class Log(ABC):
    """Entries that are appended and never changed."""

    @abstractmethod
    def append(self, entry: bytes) -> int:
        """Append an entry; returns its position. Raises SyncError, and then it is not in the log."""

    @abstractmethod
    def read(self, position: int) -> Iterator[bytes]:
        """The entries from a position on. Raises SyncError for one that can't be read now.

        An entry that is larger than the log allows, or no plain file, reads as empty, for every reader alike.
        """


class MemoryLog(Log):
    """A list."""

    def __init__(self, entries: list[bytes] | None = None, first: int = 0) -> None:
        self.entries = [] if entries is None else entries
        self.first = first
        """Position of the first entry that is kept."""

    def append(self, entry: bytes) -> int:
        self.entries.append(entry)
        return self.first + len(self.entries) - 1

    def read(self, position: int) -> Iterator[bytes]:
        if position < self.first:
            raise SyncError(f"the log keeps entries from position {self.first} on, and {position} was asked for")
        for index in itertools.count(position - self.first):
            if index >= len(self.entries):
                return
            yield self.entries[index]

    def drop(self, before: int) -> None:
        """Forget the entries before a position: every reader has read them."""
        del self.entries[: max(0, before - self.first)]
        self.first = max(before, self.first)


class DirectoryLog(Log):
    """Numbered files: an entry is written under a name of its own, then linked to the next number that is free.

    Linking fails where the number exists, so that two islands never take the same one and no reader sees half an
    entry. most_bytes: size of the largest entry that is read.
    """

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self.directory, self.most_bytes = directory, most_bytes
        self._next = 0  # every number below exists
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = directory.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"sync.exchange.log = {str(directory)!r} can't be made ({error.strerror}). Fix: name a directory that "
                "all islands can write"
            ) from error
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"sync.exchange.log = {str(directory)!r} is not allowed: other users can write there (mode "
                f"{stat.S_IMODE(mode):04o}). Fix: chmod 700 {directory}"
            )

    def append(self, entry: bytes) -> int:
        if len(entry) > self.most_bytes:
            raise SyncError(
                f"an entry of {len(entry)} bytes is too large for a log whose readers take {self.most_bytes}"
            )
        partial = self.directory / f".{os.uname().nodename}-{os.getpid()}.partial"
        try:
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as f:
                f.write(entry)
                f.flush()
                os.fsync(f.fileno())
            position = self._link(partial)
        except OSError as error:
            raise SyncError(
                f"nothing could be appended to the log in {self.directory} ({error.strerror}). Nothing was committed: "
                "local weights are kept and the pseudo-gradient stays pending."
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return position

    def _link(self, partial: Path) -> int:
        """Give a whole file the next number; returns it."""
        while True:
            try:
                os.link(partial, self._path(self._next))
            except FileExistsError:
                self._next += 1
            else:
                break
        return self._next

    def read(self, position: int) -> Iterator[bytes]:
        for number in itertools.count(position):
            try:
                descriptor = os.open(self._path(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return
            except OSError as error:
                if self._path(number).is_symlink():
                    yield b""
                    continue
                raise self._unread(number, error) from error
            try:
                entry = self._whole(descriptor)
            except OSError as error:
                raise self._unread(number, error) from error
            finally:
                os.close(descriptor)
            yield entry

    def _whole(self, descriptor: int) -> bytes:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > self.most_bytes:
            return b""
        with os.fdopen(descriptor, "rb", closefd=False) as f:
            return f.read(found.st_size)

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:012d}"

    def _unread(self, number: int, error: OSError) -> SyncError:
        return SyncError(f"entry {number} of the log in {self.directory} can't be read ({error.strerror})")
