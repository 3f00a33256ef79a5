"""A store in the memory of one process: simulated islands share a `Heap`, each through an `Objects` of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from lowcomm.store.objects import Answer, Listed, Objects, check_key, check_prefix, check_range


class Heap:
    """Objects by key, exact and at once. A subclass may lose answers, delay puts, and show less than there is."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put_new(self, key: str, data: bytes) -> Answer:
        """As `Objects.put_new`."""
        return Answer.CREATED if self.create(key, data) else Answer.EXISTS

    def get(self, key: str) -> bytes | None:
        """As `Objects.get`."""
        return self.objects.get(key)

    def list(self, prefix: str, after: str | None) -> list[Listed]:
        """As `Objects.list`."""
        with self._lock:
            found = [(key, len(data)) for key, data in self.objects.items() if key.startswith(prefix)]
        return [Listed(key, size) for key, size in sorted(found) if after is None or key > after]

    def delete(self, key: str) -> None:
        """As `Objects.delete`, for one key."""
        with self._lock:
            self.objects.pop(key, None)

    def create(self, key: str, data: bytes) -> bool:
        """Whether there was no such key, so that the bytes are there now."""
        with self._lock:
            if key in self.objects:
                return False
            self.objects[key] = data
            return True


class MemoryObjects(Objects):
    """One island's way to a heap; `part_bytes` may be small, to see parts in a simulation."""

    def __init__(self, heap: Heap | None = None, *, part_bytes: int | None = None) -> None:
        super().__init__()
        self.heap = Heap() if heap is None else heap
        self.where = "memory"
        self.poll_first_s, self.poll_most_s = 0.02, 1.0
        if part_bytes is not None:
            self.part_bytes = part_bytes

    def put_new(self, key: str, data: bytes) -> Answer:
        self.counts.add(puts=1, up_bytes=len(data))
        return self.heap.put_new(check_key(key), data)

    def get(self, key: str) -> bytes | None:
        self.counts.add(gets=1)
        data = self.heap.get(check_key(key))
        self.counts.add(down_bytes=len(data or b""))
        return data

    def get_range(self, key: str, start: int, size: int) -> bytes | None:
        check_range(start, size)
        self.counts.add(gets=1)
        data = self.heap.get(check_key(key))
        part = None if data is None else data[start : start + size]
        self.counts.add(down_bytes=len(part or b""))
        return part

    def list(self, prefix: str, after: str | None = None) -> list[Listed]:
        check_prefix(prefix, after)
        self.counts.add(lists=1)
        return self.heap.list(prefix, after)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.counts.add(deletes=1)
            self.heap.delete(check_key(key))
