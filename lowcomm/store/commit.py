"""A commit: what leads from version V to V + 1. Created once; never deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowcomm.store import text
from lowcomm.types import PayloadError

FORMAT = 1
_FIELDS = (
    "format", "v", "by", "nonce", "prev", "state", "used", "scale", "admit", "remove", "snapshot", "pace", "stop",
    "waited_s", "wall",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Used:
    """A contribution that a commit uses."""

    key: str
    sha256: str
    """Of the object under the key, which names the sha256 of its parts."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """Whom a commit lets in."""

    inc: str
    name: str
    base: int
    """Of the request."""


@dataclass(frozen=True, kw_only=True)
class Removed:
    """Whom a commit puts out, and why, for people."""

    inc: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Announced:
    """A snapshot that somebody has seen whole."""

    version: int
    key: str
    """Of its manifest."""
    sha256: str
    """Of its manifest."""

    def as_json(self) -> dict[str, Any]:
        return {"version": self.version, "key": self.key, "sha256": self.sha256}

    @classmethod
    def of(cls, value: Any) -> Announced:
        """Raises PayloadError."""
        found = text.fields(value, ("version", "key", "sha256"), "a snapshot")
        return cls(
            version=text.whole(found, "version"),
            key=text.string(found, "key", most=300),
            sha256=text.string(found, "sha256", text.SHA256),
        )


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The fields of `commits/V`."""

    v: int
    by: str
    nonce: str
    prev: str
    """sha256 of the bytes of commit V - 1, "" for the first."""
    state: str
    """Digest of version V."""
    used: tuple[Used, ...] = ()
    """In the order of the sum."""
    scale: float = 1.0
    admit: tuple[Admitted, ...] = ()
    remove: tuple[Removed, ...] = ()
    snapshot: Announced | None = None
    pace: Mapping[str, Any] | None = None
    """What islands do until the next contribution; None: as before."""
    stop: bool = False
    waited_s: float = 0.0
    wall: str = ""
    """Wall time for people."""

    def write(self) -> bytes:
        """Its canonical text."""
        return text.write({
            "format": FORMAT, "v": self.v, "by": self.by, "nonce": self.nonce, "prev": self.prev, "state": self.state,
            "used": [[u.key, u.sha256, u.weight] for u in self.used], "scale": self.scale,
            "admit": [[a.inc, a.name, a.base] for a in self.admit], "remove": [[r.inc, r.reason] for r in self.remove],
            "snapshot": None if self.snapshot is None else self.snapshot.as_json(),
            "pace": None if self.pace is None else dict(self.pace), "stop": self.stop, "waited_s": self.waited_s,
            "wall": self.wall,
        })  # fmt: skip

    @classmethod
    def read(cls, raw: bytes) -> Commit:
        """Raises PayloadError for anything that `write` can't have made."""
        found = text.fields(text.read(raw), _FIELDS, "a commit")
        text.whole(found, "format", FORMAT, FORMAT)
        shot, pace = found["snapshot"], found["pace"]
        if pace is not None and not isinstance(pace, dict):
            raise PayloadError("a commit's pace is no object")
        return cls(
            v=text.whole(found, "v"),
            by=text.string(found, "by", text.INCARNATION),
            nonce=text.string(found, "nonce", text.INCARNATION),
            prev=text.string(found, "prev", most=64),
            state=text.string(found, "state", text.SHA256),
            used=tuple(_used(row) for row in text.rows(found, "used")),
            scale=text.number(found, "scale"),
            admit=tuple(_admitted(row) for row in text.rows(found, "admit")),
            remove=tuple(_removed(row) for row in text.rows(found, "remove")),
            snapshot=None if shot is None else Announced.of(shot),
            pace=pace,
            stop=text.flag(found, "stop"),
            waited_s=text.number(found, "waited_s"),
            wall=text.string(found, "wall", most=40),
        )


def _row(row: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(row, list) or len(row) != len(names):
        raise PayloadError(f"a row of a commit is {str(row)[:100]}, expected {list(names)}")
    return dict(zip(names, row, strict=True))


def _used(row: Any) -> Used:
    found = _row(row, ("key", "sha256", "weight"))
    return Used(
        key=text.string(found, "key", most=200),
        sha256=text.string(found, "sha256", text.SHA256),
        weight=text.number(found, "weight"),
    )


def _admitted(row: Any) -> Admitted:
    found = _row(row, ("inc", "name", "base"))
    return Admitted(
        inc=text.string(found, "inc", text.INCARNATION),
        name=text.string(found, "name", text.NAME),
        base=text.whole(found, "base"),
    )


def _removed(row: Any) -> Removed:
    found = _row(row, ("inc", "reason"))
    return Removed(inc=text.string(found, "inc", text.INCARNATION), reason=text.string(found, "reason"))
