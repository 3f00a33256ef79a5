"""Objects of one's own on their way into the store, in order. Their keys are nobody else's: what is there is ours."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from lowcomm.store.create import create_own_once
from lowcomm.store.objects import Objects


class Outbox:
    """Creates objects one after the other."""

    def __init__(self) -> None:
        self.left: deque[tuple[str, bytes]] = deque()

    def add(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Send these after what is there."""
        self.left.extend(objects)

    def send(self, objects: Objects) -> list[str]:
        """Create what is left; returns the keys that have arrived. Stops at one that can't be read yet, to be tried
        again by the next call. Raises StoreError."""
        arrived: list[str] = []
        while self.left:
            key, data = self.left[0]
            if not create_own_once(objects, key, data):
                break
            arrived.append(key)
            self.left.popleft()
        return arrived
