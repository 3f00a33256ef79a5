"""The board: short texts by which processes of one run tell each other who is alive and who goes on.

It is apart from the groups that carry exchanges, so that it works when these are broken. On one machine it is the
directory of mode 0700 in which the ranks have found each other, on several the run's rendezvous (or torchrun's store).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

STORE_S = 10.0
"""What a store on another machine may take to answer."""


class Board(ABC):
    """Keys and texts. Methods raise OSError where it can't be reached."""

    @abstractmethod
    def post(self, key: str, text: str) -> None:
        """Write a text, over one that is there."""

    @abstractmethod
    def read(self, key: str) -> str | None:
        """The text; None: there is none."""

    @abstractmethod
    def decide(self, key: str, text: str) -> str:
        """The text that was written first for this key, by whomever: the same for all."""

    @abstractmethod
    def join(self, rank: int) -> None:
        """Be rank `rank` on it."""

    @property
    def ends_with_rank_0(self) -> bool:
        """Whether it lies in the process of rank 0."""
        return False

    def is_dead(self, rank: int) -> bool:
        """Whether another rank's process is known to be gone; False where that can't be told from silence."""
        return False

    @abstractmethod
    def meeting(self, number: int) -> dist.Store:
        """The store through which a new group, the run's `number`-th, finds its ranks."""


class FileBoard(Board):
    """Files of a directory that only this user can enter.

    A rank keeps a lock on its own file, which the system takes away when the process is gone, however it went.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._held: int | None = None

    def post(self, key: str, text: str) -> None:
        partial = self._partial()
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.directory / key)

    def read(self, key: str) -> str | None:
        try:
            return (self.directory / key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def decide(self, key: str, text: str) -> str:
        partial = self._partial()
        partial.write_text(text, encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(partial, self.directory / key)
        partial.unlink()
        return (self.directory / key).read_text(encoding="utf-8")

    def join(self, rank: int) -> None:
        partial = self._partial()  # nobody is to see it without its lock
        self._held = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: children do not inherit it
        partial.rename(self.directory / f"rank {rank}")

    def is_dead(self, rank: int) -> bool:
        try:
            with (self.directory / f"rank {rank}").open("rb") as file:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back with the file
        except OSError:  # it is held, or the rank has not come yet
            return False
        return True

    def meeting(self, number: int) -> dist.Store:
        return dist.FileStore(str(self.directory / f"store {number}"), -1)

    def _partial(self) -> Path:
        return self.directory / f"partial {os.getpid()} {threading.get_ident()}"


class StoreBoard(Board):
    """Keys of the run's store, by a connection of its own: a rank that waits in a store may hold up its other calls."""

    def __init__(self, store: dist.Store, apart: dist.Store) -> None:
        """apart: the same store by another connection, or one that threads may share."""
        self._groups, self._store = store, apart
        self._lock = threading.Lock()

    @property
    def ends_with_rank_0(self) -> bool:
        return isinstance(self._groups, dist.TCPStore)

    def post(self, key: str, text: str) -> None:
        with self._reached():
            self._store.set(f"lowcomm/{key}", text)

    def read(self, key: str) -> str | None:
        name = f"lowcomm/{key}"
        with self._reached():
            return self._store.get(name).decode() if self._store.check([name]) else None

    def decide(self, key: str, text: str) -> str:
        with self._reached():
            return self._store.compare_set(f"lowcomm/{key}", "", text).decode()

    def join(self, rank: int) -> None:
        return None

    def meeting(self, number: int) -> dist.Store:
        return dist.PrefixStore(f"lowcomm/meeting {number}", self._groups)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except RuntimeError as error:
            raise OSError(f"the store of the run does not answer ({str(error).splitlines()[0]})") from error
