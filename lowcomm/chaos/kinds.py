"""Names of the phases of a round and of faults, what goes together, and how each fault is made.

A fault comes when an island reaches a phase: `inside` it happens in that process, `outside` whoever started the islands
does it when the process says that it has come. "injected" marks what only looks like the real thing from inside:
requests that hang or are answered with an error, a disk that refuses to be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PHASES = ("step", "encode", "upload", "uploaded", "apply", "heal", "snapshot")
"""Inner step; encode; the contribution is written but has no name yet (a bucket: its request is under way); it is in
the store, and no commit has it; between the outer step and the new version; a snapshot was read, and the chain is not
followed yet; a snapshot's files are there, and its manifest is not."""
FAILING = ("cut", "errors", "down", "full")
"""Faults in which requests fail: who is started meanwhile may say so and end with 2, and is started again."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault."""

    what: str
    """For people."""
    where: Literal["inside", "outside"]
    phases: tuple[str, ...] = PHASES
    """In which it may come."""
    lasts: bool = False
    """Whether it has a duration."""
    ends: tuple[int, ...] = ()
    """Exit codes that the process may have for it (negative: a signal), beside 0."""


KINDS: dict[str, Kind] = {
    "kill": Kind(what="kill -9", where="inside", ends=(-9,)),
    "stop": Kind(what="SIGSTOP, then SIGCONT", where="inside", lasts=True),
    "term": Kind(what="SIGTERM", where="inside", ends=(3, -15)),
    "cut": Kind(what="link cut (injected: its requests hang, then fail)", where="inside", lasts=True),
    "slow": Kind(what="slow link (injected: 0.2 s and 2 MB/s for each request)", where="inside", lasts=True),
    "errors": Kind(what="store answers errors, to all (injected)", where="inside", lasts=True),
    "late": Kind(what="store answers late, to all (injected)", where="inside", lasts=True),
    "down": Kind(what="store down, for all", where="inside", lasts=True),
    "full": Kind(what="store's disk full, for all", where="inside", lasts=True),
    "corrupt": Kind(what="payload corrupted on its way", where="inside", phases=("upload",)),
    "damage": Kind(what="object damaged in the store", where="inside", phases=("uploaded", "apply")),
    "nan": Kind(what="NaN batch", where="inside", phases=("step", "encode")),
    "blow-up": Kind(what="weights times 10^6", where="inside", phases=("step", "encode")),
    "bits": Kind(what="wrong version: it folds to other bits", where="inside", phases=("apply",), ends=(1,)),
    "version": Kind(what="wrong version: another arithmetic joins", where="outside", phases=("step", "uploaded")),
    "clock": Kind(what="clock steps two days on", where="inside"),
    "twin": Kind(what="second start with one name", where="outside", phases=("step", "uploaded", "apply")),
}


def pairs() -> list[tuple[str, str]]:
    """All (fault, phase) that there are."""
    return [(name, phase) for name, kind in KINDS.items() for phase in kind.phases]
