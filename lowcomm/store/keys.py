"""The keys of a run's objects, and what a key says: numbers have 12 digits, so that listings are in their order."""

from __future__ import annotations

import re
from typing import NamedTuple

RUN, STOP = "run.json", "control/stop"
COMMITS, DELTAS, JOINS, SNAPSHOTS = "commits/", "deltas/", "joins/", "snapshots/"
MANIFEST = "manifest.json"
MOST = 10**12 - 1
_COMMIT = re.compile(r"commits/(\d{12})")
_DELTA = re.compile(r"deltas/(\d{12})/([0-9a-f]{32})-(\d{12})")
_JOIN = re.compile(r"joins/(\d{12})/([0-9a-f]{32})")
_SNAPSHOT = re.compile(r"snapshots/(\d{12})-([0-9a-f]{32})/(.+)")
_BASED = re.compile(r"(?:deltas|joins)/(\d{12})/.+")


class DeltaKey(NamedTuple):
    """What the key of a contribution says."""

    base: int
    inc: str
    seq: int


def commit(version: int) -> str:
    """The commit that leads from this version to the next."""
    return f"{COMMITS}{version:012d}"


def delta(base: int, inc: str, seq: int) -> str:
    """A contribution."""
    return f"{DELTAS}{base:012d}/{inc}-{seq:012d}"


def join(base: int, inc: str) -> str:
    """A request to join."""
    return f"{JOINS}{base:012d}/{inc}"


def snapshot(version: int, inc: str) -> str:
    """The folder of a snapshot, with its slash."""
    return f"{SNAPSHOTS}{version:012d}-{inc}/"


def since(prefix: str, version: int) -> str | None:
    """What to list after, to get keys of this version and later ones; prefix: DELTAS, JOINS or SNAPSHOTS."""
    return f"{prefix}{version:012d}" if version > 0 else None


def version_of_commit(key: str) -> int | None:
    """None: no commit's key."""
    found = _COMMIT.fullmatch(key)
    return None if found is None else int(found[1])


def read_delta(key: str) -> DeltaKey | None:
    """None: no contribution's key (its parts are none either)."""
    found = _DELTA.fullmatch(key)
    return None if found is None else DeltaKey(int(found[1]), found[2], int(found[3]))


def read_join(key: str) -> tuple[int, str] | None:
    """Base and incarnation of a request; None: no such key."""
    found = _JOIN.fullmatch(key)
    return None if found is None else (int(found[1]), found[2])


def version_of_snapshot(key: str) -> int | None:
    """Version of a file of a snapshot; None: no such key."""
    found = _SNAPSHOT.fullmatch(key)
    return None if found is None else int(found[1])


def is_manifest(key: str) -> bool:
    """Whether a snapshot's last file has this key."""
    found = _SNAPSHOT.fullmatch(key)
    return found is not None and found[3] == MANIFEST


def base_of(key: str) -> int | None:
    """Base of a contribution, one of its parts or a request; None: another kind of object."""
    found = _BASED.fullmatch(key)
    return None if found is None else int(found[1])
