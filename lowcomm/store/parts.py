"""Bodies larger than one object should be: parts first, the object that lists them last. Steps of one request each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowcomm.store.create import create_own_once
from lowcomm.store.objects import Objects, check_key
from lowcomm.types import PayloadError


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part as the last object lists it."""

    key: str
    size: int
    sha256: str


def part_key(key: str, index: int, count: int) -> str:
    """`KEY.p00`: with as many digits as all `count` of them need, so that a listing has them in order."""
    return f"{key}.p{index:0{max(2, len(str(count - 1)))}d}"


def cut(key: str, data: bytes, part_bytes: int) -> list[tuple[Part, bytes]]:
    """A body as parts `KEY.p00`, `KEY.p01` ... of at most `part_bytes`; none for an empty one."""
    pieces = [data[start : start + part_bytes] for start in range(0, len(data), part_bytes)]
    return [
        (Part(key=part_key(key, n, len(pieces)), size=len(piece), sha256=hashlib.sha256(piece).hexdigest()), piece)
        for n, piece in enumerate(pieces)
    ]


class Upload:
    """Objects that only this incarnation writes, created in order; the last makes the others count."""

    def __init__(self, bodies: Iterable[tuple[str, bytes]]) -> None:
        self._bodies = [(check_key(key), data) for key, data in bodies][::-1]

    @property
    def done(self) -> bool:
        """Whether all of them are there."""
        return not self._bodies

    def step(self, objects: Objects) -> bool:
        """Create the next one; False: it is not there yet, back off. Raises StoreError, and may be called again."""
        if self._bodies:
            if not create_own_once(objects, *self._bodies[-1]):
                return False
            self._bodies.pop()
        return True


class Download:
    """A body from its parts. Their sum is bounded before anything is read."""

    def __init__(self, parts: Sequence[Part], *, most_bytes: int) -> None:
        """Raises PayloadError for parts that can't be of one body."""
        announced = sum(part.size for part in parts)
        if any(part.size < 1 for part in parts) or announced > most_bytes:
            raise PayloadError(
                f"{len(parts)} parts of {announced} bytes in all are announced, {most_bytes} are possible."
            )
        self._parts, self._pieces = list(parts), list[bytes]()

    @property
    def body(self) -> bytes | None:
        """All of it; None while a part is missing."""
        return b"".join(self._pieces) if len(self._pieces) == len(self._parts) else None

    def step(self, objects: Objects) -> bool:
        """Read the next part; False: it is not there yet. Raises StoreError, or PayloadError if it is another one."""
        if len(self._pieces) < len(self._parts):
            part = self._parts[len(self._pieces)]
            piece = objects.get_range(part.key, 0, part.size + 1)
            if piece is None:
                return False
            if len(piece) != part.size or hashlib.sha256(piece).hexdigest() != part.sha256:
                raise PayloadError(
                    f"{part.key!r} is not the part that is listed: {len(piece)} bytes of another digest."
                )
            self._pieces.append(piece)
        return True
