"""Published versions: the weights of a run in bf16, for machines that follow it and only read.

patches/V/from-B          a patch from version B, that was published before it, to version V
patches/V/anchor          all of version V
patches/V/INC-from.p00, patches/V/INC-anchor.p00 ...   their bodies; the two above are created last and name them

History does not depend on them: who loses one takes the next anchor. Bodies have the incarnation in their keys, as two
members may publish one version; the first head counts, and both lead to the same bits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from lowcomm.store import text
from lowcomm.store.objects import Listed
from lowcomm.store.parts import Part, Upload, cut
from lowcomm.store.patch_code import Form, Packed
from lowcomm.types import PayloadError

PATCHES = "patches/"
FORMAT = 1
_HEAD = re.compile(r"patches/(\d{12})/(?:anchor|from-(\d{12}))")
_ANY = re.compile(r"patches/(\d{12})/.+")
_BODY = re.compile(r"patches/(\d{12})/[0-9a-f]{32}-(anchor|from)\.p\d{2,5}")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_FORM = re.compile(r"bits|steps")
_FIELDS = ("format", "run_id", "version", "base", "digest", "form", "changed", "sizes", "parts", "tokens", "last")


class HeadKey(NamedTuple):
    """What the key of a head says."""

    version: int
    base: int | None
    """None: an anchor."""

    @property
    def key(self) -> str:
        """Of the head."""
        return f"{folder(self.version)}{'anchor' if self.base is None else f'from-{self.base:012d}'}"

    @property
    def kind(self) -> str:
        """As its bodies have it in their keys."""
        return "anchor" if self.base is None else "from"


@dataclass(frozen=True, kw_only=True)
class Head:
    """The fields of a head."""

    run_id: str
    key: HeadKey
    digest: str
    """Of all bits of the version that it leads to."""
    form: Form
    changed: int
    """Entries in it."""
    sizes: tuple[tuple[int, int], ...]
    tokens: int
    """That the run had done."""
    last: bool
    """Whether the run is over with this version."""
    parts: tuple[Part, ...] = ()

    def write(self) -> bytes:
        """Its canonical text."""
        return text.write({
            "format": FORMAT, "run_id": self.run_id, "version": self.key.version, "base": self.key.base,
            "digest": self.digest, "form": self.form, "changed": self.changed, "sizes": [list(s) for s in self.sizes],
            "parts": [[p.key, p.size, p.sha256] for p in self.parts], "tokens": self.tokens, "last": self.last,
        })  # fmt: skip

    @classmethod
    def read(cls, raw: bytes, key: HeadKey, run_id: str) -> Head:
        """Raises PayloadError, also for a head of another key or run."""
        found = text.fields(text.read(raw), _FIELDS, "a head of a patch")
        text.whole(found, "format", FORMAT, FORMAT)
        if (found["run_id"], found["version"], found["base"]) != (run_id, key.version, key.base):
            raise PayloadError(f"{key.key} is the head of version {str(found['version'])[:20]} of another patch or run")
        return cls(
            run_id=run_id,
            key=key,
            digest=text.string(found, "digest", _DIGEST),
            form=cast("Form", text.string(found, "form", _FORM)),
            changed=text.whole(found, "changed"),
            sizes=tuple(_size(row) for row in text.rows(found, "sizes")),
            parts=tuple(_part(row, key) for row in text.rows(found, "parts")),
            tokens=text.whole(found, "tokens"),
            last=text.flag(found, "last"),
        )

    def packed(self, body: bytes) -> Packed:
        """With the body that its parts are."""
        return Packed(form=self.form, sizes=self.sizes, body=body, changed=self.changed)


def folder(version: int) -> str:
    """Of a published version, with its slash."""
    return f"{PATCHES}{version:012d}/"


def read_key(key: str) -> HeadKey | None:
    """None: no key of a head."""
    found = _HEAD.fullmatch(key)
    return None if found is None else HeadKey(int(found[1]), None if found[2] is None else int(found[2]))


def after(version: int) -> str:
    """What to list after, to get the versions behind this one."""
    return folder(version + 1)[:-1]


def upload_of(head: Head, packed: Packed, inc: str, part_bytes: int) -> Upload:
    """Its objects, the head last; the head's parts are set here."""
    bodies = cut(f"{folder(head.key.version)}{inc}-{head.key.kind}", packed.body, part_bytes)
    whole = dataclasses.replace(head, parts=tuple(part for part, _ in bodies))
    return Upload([*((part.key, data) for part, data in bodies), (head.key.key, whole.write())])


def sizes_of(listed: Iterable[Listed]) -> dict[HeadKey, int]:
    """The heads of a listing, and about the bytes of their bodies."""
    found: dict[HeadKey, int] = {}
    bodies: dict[tuple[int, str], int] = {}
    for one in listed:
        if (key := read_key(one.key)) is not None:
            found[key] = one.size
        elif (body := _BODY.fullmatch(one.key)) is not None:
            at = (int(body[1]), body[2])
            bodies[at] = bodies.get(at, 0) + one.size
    return {key: size + bodies.get((key.version, key.kind), 0) for key, size in found.items()}


def garbage(listed: Sequence[Listed], horizon: int) -> list[str]:
    """Keys before the newest anchor at or before the horizon: nobody needs them to reach a later version."""
    anchors = [key.version for one in listed if (key := read_key(one.key)) is not None and key.base is None]
    kept_from = max((v for v in anchors if v <= horizon), default=0)
    versions = [(found, one.key) for one in listed if (found := _ANY.fullmatch(one.key)) is not None]
    return [key for found, key in versions if int(found[1]) < kept_from]


def _size(row: Any) -> tuple[int, int]:
    if not isinstance(row, list) or len(row) != 2:
        raise PayloadError(f"a stream is {str(row)[:100]}, expected [bytes, bytes packed]")
    found = {"raw": row[0], "packed": row[1]}
    return text.whole(found, "raw"), text.whole(found, "packed")


def _part(row: Any, key: HeadKey) -> Part:
    if not isinstance(row, list) or len(row) != 3:
        raise PayloadError(f"a part is {str(row)[:100]}, expected [key, bytes, sha256]")
    found = {"key": row[0], "bytes": row[1], "sha256": row[2]}
    name = text.string(found, "key", _BODY)
    if not name.startswith(folder(key.version)):
        raise PayloadError(f"{key.key} names the part {name} of another version")
    return Part(key=name, size=text.whole(found, "bytes", 1), sha256=text.string(found, "sha256", text.SHA256))
