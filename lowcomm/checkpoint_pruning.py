"""The removal of old checkpoints: which are kept beside the newest."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from lowcomm.checkpoint import age, failure_of, lost, names, read_manifest


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` healthy checkpoints with all parts, and what never got complete before them.

    All parts: as many as the fullest checkpoint has here (a disk may hold one node's islands only), of one session.
    Healthy: not every part was saved by a failure. Of those that are not, the newest is kept beside the healthy ones
    until there is a newer healthy one.
    """
    without = lost(root)
    sessions = {name: _sessions(root / name, without.get(name, frozenset())) for name in names(root)}
    parts = max((len(found) for found in sessions.values()), default=0)
    complete = [name for name, found in sessions.items() if len(found) == parts and len(set(found)) == 1]
    healthy = [name for name in complete if not _is_offailure_of(root / name)]
    kept = {*healthy[-keep:], *complete[-1:]}
    for name in names(root):
        if kept and name not in kept and age(name) < age(complete[-1]):
            shutil.rmtree(root / name, ignore_errors=True)


def _is_offailure_of(directory: Path) -> bool:
    """Whether every part was saved by a failure: where one island was told to stop, the others' failure is the stop."""
    return all(failure_of(island) is not None for island in directory.glob("island-*"))


def _sessions(directory: Path, lost: Collection[int]) -> list[str]:
    """The session of each island's part; an unreadable one counts as a session of its own, a lost one as the first."""
    found: list[str] = []
    for island in sorted(directory.glob("island-*")):
        if int(island.name.removeprefix("island-")) in lost:
            continue
        try:
            found.append(str(read_manifest(island)["session"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            found.append(f"unreadable {island.name}")
    return found + found[:1] * len(lost)
