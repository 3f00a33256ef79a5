"""The history of a run as its commits tell it, without payloads: members, who is late, bytes. `verify` proves it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from lowcomm.store import keys
from lowcomm.store.commit import Commit
from lowcomm.store.objects import Objects
from lowcomm.store.snapshot import STATE, read_manifest
from lowcomm.storerun.names import Names
from lowcomm.types import PayloadError

MOST_COMMITS = 500
"""Commits that are read one by one for a look at a run."""


@dataclass(kw_only=True)
class Seat:
    """A member, as commits tell of it."""

    name: str
    joined: int
    """Version that let it in."""
    last: int | None = None
    """Commit that used its last contribution; None: none has."""
    key: str | None = None
    """Of that contribution."""
    used: int = 0
    missed: int = 0
    """Commits with contributions, and none of its own, while it was a member."""
    staleness: int = 0
    """The largest number of versions between the base of a contribution and the commit that used it."""


@dataclass(kw_only=True)
class History:
    """What was read so far; `version` is that of the run."""

    version: int = 0
    members: dict[str, Seat] = field(default_factory=dict)
    gone: list[tuple[int, str, str]] = field(default_factory=list)
    """Commit, name and reason of who was removed."""
    names: Names = field(default_factory=Names)
    tokens: int | None = None
    """Of the snapshot that it began with; None: it began with the first commit."""
    stopped: bool = False
    wall: str = ""

    def add(self, commit: Commit) -> None:
        """The next commit."""
        self.names.learn(commit)
        there = set[str]()
        for used in commit.used:
            found = keys.read_delta(used.key)
            seat = None if found is None else self.members.get(found.inc)
            if found is None or seat is None:
                continue
            there.add(found.inc)
            seat.last, seat.key, seat.used = commit.v, used.key, seat.used + 1
            seat.staleness = max(seat.staleness, commit.v - found.base)
        for inc, seat in self.members.items():
            seat.missed += int(bool(commit.used) and inc not in there)
        for removed in commit.remove:
            self.gone.append((commit.v, self.names.of(removed.inc), removed.reason))
            self.members.pop(removed.inc, None)
        for admitted in commit.admit:
            self.members[admitted.inc] = Seat(name=admitted.name, joined=commit.v)
        self.version, self.wall, self.stopped = commit.v + 1, commit.wall, self.stopped or commit.stop


def commits(objects: Objects, start: int) -> Iterator[tuple[int, bytes, Commit | str]]:
    """Commits from one on, in order, as bytes and as a commit, or why they are none."""
    version = start
    while (raw := objects.get(keys.commit(version))) is not None:
        try:
            yield version, raw, Commit.read(raw)
        except PayloadError as error:
            yield version, raw, str(error)
        version += 1


def read_history(objects: Objects) -> History:
    """To the newest commit, from the first one, or, of a long run, from the oldest snapshot that is kept."""
    short = len(objects.list(keys.COMMITS)) <= MOST_COMMITS
    history = History() if short else _from_snapshot(objects)
    follow(objects, history)
    return history


def follow(objects: Objects, history: History) -> int:
    """Add the commits that are new; how many there were."""
    before = history.version
    for version, _, commit in commits(objects, history.version):
        if isinstance(commit, Commit) and commit.v == version:
            history.add(commit)
        else:
            history.version = version + 1
    return history.version - before


def manifests(objects: Objects) -> list[str]:
    """Keys of the snapshots' manifests, the oldest first."""
    return [one.key for one in objects.list(keys.SNAPSHOTS) if one.key.endswith(f"/{keys.MANIFEST}")]


def is_over(objects: Objects) -> bool:
    """Whether the newest snapshot is that of the end: whoever ends a run leaves one."""
    for key in reversed(manifests(objects)):
        raw = objects.get(key.removesuffix(keys.MANIFEST) + STATE)
        if raw is not None:
            try:
                return bool(json.loads(raw)["done"])
            except (ValueError, KeyError, TypeError):
                return False
    return False


def _from_snapshot(objects: Objects) -> History:
    for key in manifests(objects)[1:]:  # the first is that of version 0
        found = read_manifest(objects, key)
        raw = None if found is None else objects.get(key.removesuffix(keys.MANIFEST) + STATE)
        if raw is None:
            continue
        try:
            rest = json.loads(raw)
            history = History(version=int(rest["version"]), tokens=int(rest["tokens_done"]))
            for inc, member in rest["members"].items():
                history.members[str(inc)] = Seat(name=str(member["name"]), joined=history.version)
                history.names.know(str(inc), str(member["name"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        return history
    return History()
