"""Proof that a store keeps its promises, made once per run by its creator: what fails it is refused.

A second create is refused; of 8 creates of one key at once one wins, 20 times over; what was written is read and
listed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import Barrier

from lowcomm.store.create import create
from lowcomm.store.objects import Answer, Cause, Objects, StoreError, StoreRefusedError

RACES, WRITERS = 20, 8
VISIBLE_S = 60.0
"""Within which what was written must be read and listed: NFS may lag that long."""
FIX = "use a store that creates a key only if it is absent (S3, R2, GCS, Azure or a directory with hard links)"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the probe saw, for `run.json`."""

    races: int
    writers: int
    read_s: float
    """From the end of a create until its object was read; likewise `list_s`."""
    list_s: float
    deletes: bool
    """Whether this member may delete; where not, the bucket needs a lifecycle rule."""

    def as_json(self) -> dict[str, int | float | bool]:
        """By name."""
        return asdict(self)


def probe(objects: Objects, token: str) -> Proof:
    """Put it to the proof under `probe/TOKEN/`, a name that nobody else uses. Raises StoreError."""
    keys = [f"probe/{token}/twice"]
    read_s, list_s = _twice(objects, keys[0])
    with ThreadPoolExecutor(WRITERS) as threads:
        for race in range(RACES):
            keys.append(f"probe/{token}/race-{race:02d}")
            _race(objects, keys[-1], threads)
    return Proof(
        races=RACES, writers=WRITERS, read_s=round(read_s, 3), list_s=round(list_s, 3), deletes=_deletes(objects, keys)
    )


def check_access(objects: Objects, token: str) -> None:
    """Create, read and list one object, as a member must be able to. Raises StoreError."""
    key = f"probe/{token}/access"
    create(objects, key, token.encode(), _back_off(time.monotonic() + VISIBLE_S, objects, key))
    objects.list(f"probe/{token}/")
    _deletes(objects, [key])


def _twice(objects: Objects, key: str) -> tuple[float, float]:
    give_up = time.monotonic() + VISIBLE_S
    held = create(objects, key, b"first", _back_off(give_up, objects, key))
    began = time.monotonic()
    if objects.put_new(key, b"second") is Answer.CREATED or held != b"first":
        raise _unfit(objects, f"a second create of {key!r} was not refused")
    _until(objects, key, lambda: objects.get(key) is not None, "was written and is not read")
    read_s = time.monotonic() - began
    if objects.get(key) != b"first":
        raise _unfit(objects, f"a second create of {key!r} replaced its bytes")
    prefix = key.rsplit("/", 1)[0] + "/"
    _until(objects, key, lambda: key in [one.key for one in objects.list(prefix)], "was written and is not listed")
    return read_s, time.monotonic() - began


def _race(objects: Objects, key: str, threads: ThreadPoolExecutor) -> None:
    start = Barrier(WRITERS)

    def put(writer: int) -> Answer:
        start.wait()
        return objects.put_new(key, f"writer {writer}".encode())

    answers = list(threads.map(put, range(WRITERS)))
    won = [writer for writer, answer in enumerate(answers) if answer is Answer.CREATED]
    held = create(objects, key, b"writer 0", _back_off(time.monotonic() + VISIBLE_S, objects, key))
    if len(won) > 1 or (won and held != f"writer {won[0]}".encode()):
        raise _unfit(objects, f"{len(won)} of {WRITERS} creates of {key!r} at once were told that they won")
    if objects.get(key) != held:
        raise _unfit(objects, f"the bytes of {key!r} changed after they were read")


def _deletes(objects: Objects, keys: list[str]) -> bool:
    try:
        objects.delete(keys)
    except StoreError:
        return False
    return True


def _until(objects: Objects, key: str, seen: Callable[[], bool], failing: str) -> None:
    give_up, tries = time.monotonic() + VISIBLE_S, 0
    while not seen():
        if time.monotonic() > give_up:
            raise _unfit(objects, f"{key!r} {failing} for {VISIBLE_S:.0f} s")
        time.sleep(min(objects.poll_first_s * 1.5**tries, objects.poll_most_s))
        tries += 1


def _back_off(give_up: float, objects: Objects, key: str) -> Callable[[int], None]:
    def wait(tries: int) -> None:
        if time.monotonic() > give_up:
            raise objects.trouble or _unfit(objects, f"{key!r} was not there after {tries + 1} creates")
        time.sleep(min(objects.poll_first_s * 1.5**tries, objects.poll_most_s))

    return wait


def _unfit(objects: Objects, failed: str) -> StoreRefusedError:
    return StoreRefusedError(f"store {objects.where} fails the probe: {failed}. Fix: {FIX}.", Cause.UNFIT)
