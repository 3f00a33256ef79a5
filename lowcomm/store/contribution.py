"""A contribution as an object: its header, then its sections, the Delta's payload first.

    offset  bytes
         0      4  magic "LCSC"
         4      4  length of the header, little-endian
         8         header: canonical JSON
                   the sections, one after the other; where they are in parts, nothing

Above the store's `part_bytes` the sections are cut into objects of their own (`KEY.pNN`), which go up first; the header
names their sizes and sha256, so that the sha256 of the object under KEY stands for all of it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lowcomm.store import keys, parts, text
from lowcomm.types import PayloadError

MAGIC = b"LCSC"
_PREFIX = struct.Struct("<4sI")
MOST_HEAD_BYTES = _PREFIX.size + text.MOST_BYTES
DELTA = "delta"
"""The section with the codec's payload."""
MOST_BLOCKS = 50_000
_FIELDS = (
    "run_id", "inc", "seq", "base", "fragment", "anchor", "codec", "tokens", "steps", "norm", "blocks", "last",
    "expected_s", "sections", "parts",
)  # fmt: skip


class Section(NamedTuple):
    """A section of the body."""

    name: str
    size: int
    sha256: str


class Listed(NamedTuple):
    """A part of the body, an object of its own."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a contribution says of itself."""

    run_id: str
    inc: str
    seq: int
    base: int
    """Version of the chain that it was taken from."""
    fragment: int
    anchor: str
    """Digest of that version."""
    codec: str
    tokens: int
    steps: int
    norm: float
    """L2 norm of the Delta before the codec."""
    blocks: tuple[int, ...] = ()
    """Trained ones, ascending."""
    last: bool = False
    expected_s: float = 0.0
    """Seconds until its author's next."""
    sections: tuple[Section, ...] = ()
    parts: tuple[Listed, ...] = ()
    """None: the sections follow the header."""

    @property
    def key(self) -> str:
        return keys.delta(self.base, self.inc, self.seq)

    @property
    def body_bytes(self) -> int:
        """Of all sections."""
        return sum(s.size for s in self.sections)

    def write(self) -> bytes:
        """Prefix and canonical text."""
        head = text.write({
            "run_id": self.run_id, "inc": self.inc, "seq": self.seq, "base": self.base, "fragment": self.fragment,
            "anchor": self.anchor, "codec": self.codec, "tokens": self.tokens, "steps": self.steps, "norm": self.norm,
            "blocks": list(self.blocks), "last": self.last, "expected_s": self.expected_s,
            "sections": [list(s) for s in self.sections], "parts": [list(p) for p in self.parts],
        })  # fmt: skip
        return _PREFIX.pack(MAGIC, len(head)) + head

    @classmethod
    def read(cls, data: bytes) -> tuple[Header, int]:
        """The header that an object begins with, and where its body begins. Raises PayloadError."""
        if len(data) < _PREFIX.size:
            raise PayloadError(f"a contribution of {len(data)} bytes")
        magic, size = _PREFIX.unpack_from(data)
        if magic != MAGIC or size > text.MOST_BYTES or _PREFIX.size + size > len(data):
            raise PayloadError(f"a contribution that begins with {magic!r} and a header of {size} bytes")
        found = text.fields(text.read(data[_PREFIX.size : _PREFIX.size + size]), _FIELDS, "a contribution")
        blocks = tuple(text.whole({"block": b}, "block") for b in text.rows(found, "blocks", MOST_BLOCKS))
        if list(blocks) != sorted(set(blocks)):
            raise PayloadError("a contribution's blocks do not ascend")
        header = cls(
            run_id=text.string(found, "run_id", text.INCARNATION),
            inc=text.string(found, "inc", text.INCARNATION),
            seq=text.whole(found, "seq", 1, keys.MOST),
            base=text.whole(found, "base", 0, keys.MOST),
            fragment=text.whole(found, "fragment", 0, 10_000),
            anchor=text.string(found, "anchor", text.SHA256),
            codec=text.string(found, "codec", most=100),
            tokens=text.whole(found, "tokens", 0, 2**53),
            steps=text.whole(found, "steps", 0, 2**53),
            norm=text.number(found, "norm"),
            blocks=blocks,
            last=text.flag(found, "last"),
            expected_s=text.number(found, "expected_s"),
            sections=tuple(_section(row) for row in text.rows(found, "sections", 64)),
            parts=tuple(_part(row) for row in text.rows(found, "parts", 10_000)),
        )
        if not header.sections or header.sections[0].name != DELTA:
            raise PayloadError("a contribution without a Delta")
        return header, _PREFIX.size + size


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """One that was read and fits its header."""

    header: Header
    sha256: str
    """Of the object under its key."""
    nbytes: int
    """Of the object and its parts."""
    sections: Mapping[str, bytes] = field(repr=False)

    @property
    def payload(self) -> bytes:
        return self.sections[DELTA]


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """An object under a contribution's key that is none."""

    sha256: str
    why: str


def pack(header: Header, sections: Mapping[str, bytes], part_bytes: int) -> tuple[Header, list[tuple[str, bytes]]]:
    """The header with its sections, and the objects to create, in this order."""
    listed = tuple(Section(name, len(data), text.sha256(data)) for name, data in sections.items())
    body = b"".join(sections.values())
    cuts = parts.cut(header.key, body, part_bytes) if len(body) > part_bytes else []
    named = tuple(Listed(part.size, part.sha256) for part, _ in cuts)
    whole = dataclasses.replace(header, sections=listed, parts=named)
    objects = [(part.key, piece) for part, piece in cuts]
    return whole, [*objects, (whole.key, whole.write() + (b"" if cuts else body))]


def parts_of(header: Header) -> list[parts.Part]:
    """The objects that hold its body; none where it follows the header."""
    count = len(header.parts)
    return [
        parts.Part(key=parts.part_key(header.key, k, count), size=p.size, sha256=p.sha256)
        for k, p in enumerate(header.parts)
    ]


def unpack(key: str, data: bytes, apart: bytes | None = None) -> Contribution:
    """What lies under a key. Raises PayloadError for anything that `pack` can't have made.

    apart: the body from its parts, each of which was checked (`parts.Download`); None: it follows the header.
    """
    header, start = Header.read(data)
    if header.key != key:
        raise PayloadError(f"the contribution under {key} says that it is {header.key}")
    if (apart is None) == bool(header.parts) or (header.parts and len(data) > start):
        raise PayloadError(f"{key} has {len(header.parts)} parts and {len(data) - start} bytes beside them")
    body = data[start:] if apart is None else apart
    if len(body) != header.body_bytes:
        raise PayloadError(f"{key} has a body of {len(body)} bytes, its header says {header.body_bytes}")
    sections: dict[str, bytes] = {}
    at = 0
    for name, size, digest in header.sections:
        sections[name] = body[at : at + size]
        at += size
        if text.sha256(sections[name]) != digest:
            raise PayloadError(f"section {name} of {key} is not what its header names")
    if len(sections) != len(header.sections):
        raise PayloadError(f"{key} names a section twice")
    nbytes = len(data) + len(apart or b"")
    return Contribution(header=header, sha256=text.sha256(data), nbytes=nbytes, sections=sections)


def _row(row: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(row, list) or len(row) != len(names):
        raise PayloadError(f"a row of a contribution's header is {str(row)[:100]}, expected {list(names)}")
    return dict(zip(names, row, strict=True))


def _section(row: Any) -> Section:
    found = _row(row, ("name", "bytes", "sha256"))
    name = text.string(found, "name", text.NAME)
    return Section(name, text.whole(found, "bytes"), text.string(found, "sha256", text.SHA256))


def _part(row: Any) -> Listed:
    found = _row(row, ("bytes", "sha256"))
    return Listed(text.whole(found, "bytes", 1), text.string(found, "sha256", text.SHA256))
