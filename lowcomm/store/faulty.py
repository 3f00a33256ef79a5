"""A heap with the outcomes of a real network, drawn from a seeded generator, for checkers and drills.

Answers get lost after an object was created, requests that timed out land later (even after their sender died), a
conflict comes back as "exists" though nothing landed, what is young is missing from reads and listings, requests fail.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lowcomm.store.memory import Heap
from lowcomm.store.objects import Answer, Cause, Listed, StoreDownError


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of requests (0 to 1) that end so; what remains goes well."""

    answered_exists: float = 0.1
    """Created; the answer was lost, and the client's second request was refused by its own first."""
    answer_lost: float = 0.1
    """Created, unknown to the sender."""
    late: float = 0.1
    """Unknown to the sender; lands at one of the next ticks, or is refused then."""
    conflict: float = 0.05
    """Answered "exists"; nothing landed."""
    request_lost: float = 0.05
    """Unknown to the sender; nothing ever lands."""
    failed: float = 0.0
    """Any request: StoreDownError, nothing done."""
    unseen_get: float = 0.3
    """A read of an object younger than `get_lag` ticks finds nothing."""
    unseen_list: float = 0.4
    """A listing leaves out an object younger than `list_lag` ticks."""
    lands: float = 0.02
    """Per tick: a late request lands."""
    get_lag: int = 20
    list_lag: int = 40


class FaultyHeap(Heap):
    """Faults while `chaos` is on; `tick` lets time pass. `exact` off: creating overwrites, as in a broken store."""

    def __init__(self, rng: random.Random, faults: Faults | None = None, *, exact: bool = True) -> None:
        super().__init__()
        self.rng, self.faults, self.exact = rng, Faults() if faults is None else faults, exact
        self.chaos, self.down, self.now = True, False, 0
        self.born: dict[str, int] = {}
        self.late: list[tuple[str, bytes]] = []

    def tick(self) -> None:
        """A unit of time: a late request may land."""
        self.now += 1
        if self.late and self.rng.random() < self.faults.lands:
            self.create(*self.late.pop(self.rng.randrange(len(self.late))))

    def create(self, key: str, data: bytes) -> bool:
        if not self.exact:
            self.objects.pop(key, None)
        if super().create(key, data):
            self.born[key] = self.now
            return True
        return False

    def put_new(self, key: str, data: bytes) -> Answer:
        self._may_fail(key)
        if not self.chaos:
            return super().put_new(key, data)
        faults, drawn = self.faults, self.rng.random()
        for share, outcome in (
            (faults.answered_exists, "created exists"),
            (faults.answer_lost, "created unknown"),
            (faults.late, "late unknown"),
            (faults.conflict, "exists"),
            (faults.request_lost, "unknown"),
        ):
            if (drawn := drawn - share) < 0:
                if outcome.startswith("created"):
                    self.create(key, data)
                elif outcome.startswith("late"):
                    self.late.append((key, data))
                return Answer(outcome.split()[-1])
        return super().put_new(key, data)

    def get(self, key: str) -> bytes | None:
        self._may_fail(key)
        young = self.chaos and self.now - self.born.get(key, 0) < self.faults.get_lag
        return None if young and self.rng.random() < self.faults.unseen_get else super().get(key)

    def list(self, prefix: str, after: str | None) -> list[Listed]:
        self._may_fail(prefix)
        found = super().list(prefix, after)
        return [listed for listed in found if not self._unlisted(listed.key)]

    def delete(self, key: str) -> None:
        self._may_fail(key)
        super().delete(key)

    def _unlisted(self, key: str) -> bool:
        young = self.chaos and self.now - self.born.get(key, 0) < self.faults.list_lag
        return young and self.rng.random() < self.faults.unseen_list

    def _may_fail(self, key: str) -> None:
        if self.down or (self.chaos and self.faults.failed and self.rng.random() < self.faults.failed):
            raise StoreDownError(f"memory: {key!r} failed: store down. Fix: wait.", Cause.DOWN)
