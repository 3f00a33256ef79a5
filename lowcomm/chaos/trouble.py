"""Trouble with the store, injected into a process: requests that hang, fail, come late or find a full disk.

What holds for one island is known to its process alone; what holds for all lies in a file that each of them looks at
with every request. A request that fails is answered as the product's own stores answer it: `StoreError` with a cause,
or UNKNOWN for a creation that may have landed.
"""

from __future__ import annotations

import errno
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lowcomm.store.directory import DirectoryObjects, failure
from lowcomm.store.objects import Answer, Cause, Objects, StoreDownError, StoreRefusedError
from lowcomm.store.remote import RemoteObjects

FOR_ALL = "trouble.json"
LATE_S, SLOW_S = 1.0, 0.2
SLOW_BYTES_PER_S = 2e6
Result = TypeVar("Result")


class Trouble:
    """Of one process. `install` wraps the stores of this process, for good."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.path, self.rng = directory / FOR_ALL, random.Random(seed)
        self._own: tuple[str, float] | None = None

    def begin(self, kind: str, for_s: float) -> None:
        """This process is in trouble from now on, for so long."""
        self._own = (kind, time.monotonic() + for_s)

    def begin_for_all(self, kind: str, for_s: float) -> None:
        """All processes are."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps([kind, time.monotonic() + for_s]), encoding="utf-8")
        partial.replace(self.path)

    def now(self) -> tuple[str, float] | None:
        """What is wrong, and the seconds that are left of it; None: nothing."""
        for found in (self._own, self._of_all()):
            if found is not None and (left_s := found[1] - time.monotonic()) > 0:
                return found[0], left_s
        return None

    def _of_all(self) -> tuple[str, float] | None:
        try:
            kind, until = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return str(kind), float(until)

    def install(self) -> None:
        """Wrap all five requests of both kinds of stores."""
        for kind in (DirectoryObjects, RemoteObjects):
            for name in ("put_new", "get", "get_range", "list", "delete"):
                self._wrap(kind, name)

    def _wrap(self, kind: type[Objects], name: str) -> None:
        request = getattr(kind, name)

        def asked(objects: Objects, what: Any, *more: Any) -> Any:
            size = len(more[0]) if name == "put_new" else 0
            return self.through(
                objects, f"{name} {what!r}", size, name == "put_new", lambda: request(objects, what, *more)
            )

        setattr(kind, name, asked)

    def through(self, objects: Objects, what: str, size: int, puts: bool, request: Callable[[], Result]) -> Any:
        """A request of `size` bytes, as it goes now. Raises StoreError."""
        found = self.now()
        if found is None:
            return request()
        kind, left_s = found
        if kind == "slow":
            time.sleep(SLOW_S + size / SLOW_BYTES_PER_S)
            return request()
        if kind == "late":
            answer = request()
            time.sleep(min(LATE_S, left_s))
            return answer
        if kind == "full":
            if not puts:
                return request()
            raise objects._failed(failure(objects.where, what, OSError(errno.ENOSPC, "No space left on device")))
        if kind == "cut":
            time.sleep(left_s)
        elif puts and self.rng.random() < 0.5:  # it lands, and its answer is lost
            request()
            objects._failed(_down(objects, what))
            return Answer.UNKNOWN
        elif self.rng.random() < 0.3:
            raise objects._failed(StoreRefusedError(f"store {objects.where}: {what}: 403. Fix: wait.", Cause.DENIED))
        raise objects._failed(_down(objects, what))


def _down(objects: Objects, what: str) -> StoreDownError:
    return StoreDownError(f"store {objects.where}: {what}: store down (injected). Fix: wait.", Cause.DOWN)
