"""Requests by kind, and bytes, as they are handed to a store and come from it: counted, never estimated."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Counts:
    """What one process asked of a store. Bytes are those of bodies, without headers of the protocol."""

    puts: int = 0
    gets: int = 0
    lists: int = 0
    """One for each page of a listing."""
    deletes: int = 0
    up_bytes: int = 0
    """Bodies that were sent, also those that the store refused."""
    down_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(
        self, *, puts: int = 0, gets: int = 0, lists: int = 0, deletes: int = 0, up_bytes: int = 0, down_bytes: int = 0
    ) -> None:
        """Count requests and bytes; threads may call it at once."""
        with self._lock:
            self.puts += puts
            self.gets += gets
            self.lists += lists
            self.deletes += deletes
            self.up_bytes += up_bytes
            self.down_bytes += down_bytes

    @property
    def requests(self) -> int:
        """All of them."""
        return self.puts + self.gets + self.lists + self.deletes

    def as_json(self) -> dict[str, int]:
        """By name, for logs and reports."""
        with self._lock:
            return {
                "puts": self.puts,
                "gets": self.gets,
                "lists": self.lists,
                "deletes": self.deletes,
                "up_bytes": self.up_bytes,
                "down_bytes": self.down_bytes,
            }
