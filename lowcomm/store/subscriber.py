"""Follows the published versions of a run with read access alone: patches where they lead on, else the newest anchor.

Of all ways to the newest version that can be reached it takes the one of fewest bytes. A patch or an anchor that is
damaged, or can't be read `MOST_TRIES` times, is left out from then on: the way leads over an anchor, as soon as there
is one. Every step is checked: the parts by SHA-256, the weights that it leads to by their digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowcomm.store import text
from lowcomm.store.layout import Layout
from lowcomm.store.objects import Objects
from lowcomm.store.parts import Download
from lowcomm.store.patch_code import Bits, apply_patch, digest_of, unpack_anchor
from lowcomm.store.published import PATCHES, Head, HeadKey, after, sizes_of
from lowcomm.types import PayloadError

MOST_TRIES = 4
"""Looks after which what can't be read is left out: a listing may be ahead of reads."""
MOST_BYTES_PER_ENTRY = 12
"""Of a body: the streams of a patch whose entries all changed by more than zstd can shrink."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A published version that was reached."""

    number: int
    digest: str
    tokens: int
    last: bool
    """Whether the run is over with it."""

    def as_json(self) -> dict[str, int | str | bool]:
        """By name."""
        return {"version": self.number, "digest": self.digest, "tokens": self.tokens, "last": self.last}


class Subscriber:
    """What a follower holds: `fragments`, the bits of the version `at`."""

    def __init__(self, objects: Objects, run_id: str, layouts: Sequence[Layout]) -> None:
        self.objects, self.run_id = objects, run_id
        self.numels = [layout.numel for layout in layouts]
        self.fragments: list[Bits] = []
        self.at: Version | None = None
        self.notes: list[str] = []
        """What went wrong, for people; the caller clears it."""
        self.patches = self.anchors = self.changed = 0
        """Applied so far, and entries that patches changed."""
        self._bad: set[HeadKey] = set()
        self._tries: dict[HeadKey, int] = {}
        self._vain = 0
        """Looks in a row that saw versions and no way to one."""

    def poll(self) -> Version | None:
        """Go as far as can be gone now; None: nothing new. Raises StoreError, and may have gone a part of the way."""
        before = self.at
        while (way := self._best()) and not self._along(way):
            pass
        return None if self.at is before else self.at

    def _best(self) -> list[HeadKey]:
        """Steps to the newest version that can be reached; empty: none leads on."""
        here = None if self.at is None else self.at.number
        listed = self.objects.list(PATCHES, None if here is None else after(here))
        sizes = {key: size for key, size in sizes_of(listed).items() if key not in self._bad}
        ways = [_way(sizes, key) for key in sizes if key.base is None or key.base == here]
        self._vain = self._vain + 1 if listed and not ways else 0
        if self._vain == MOST_TRIES:
            self.notes.append(f"no patch leads on from version {here}: it waits for the next anchor")
        return max(ways, key=lambda way: (way[-1].version, -sum(sizes[key] for key in way)), default=[])

    def _along(self, way: Sequence[HeadKey]) -> bool:
        """Take these steps; False: one was left out, and another way is to be found."""
        for key in way:
            try:
                if self.take(key):
                    continue
                self._tries[key] = self._tries.get(key, 0) + 1
                if self._tries[key] < MOST_TRIES:
                    return True
                why = "it can't be read"
            except PayloadError as error:
                why = str(error)
            self._bad.add(key)
            what = "anchor" if key.base is None else "patch"
            self.notes.append(f"the {what} to version {key.version} is left out: {why}")
            return False
        return True

    def take(self, key: HeadKey) -> bool:
        """Fetch and apply; False: not all of it can be read yet. Raises PayloadError, and nothing has changed then."""
        raw = self.objects.get_range(key.key, 0, text.MOST_BYTES + 1)
        if raw is None:
            return False
        head = Head.read(raw, key, self.run_id)
        download = Download(head.parts, most_bytes=4096 + MOST_BYTES_PER_ENTRY * sum(self.numels))
        while download.body is None:
            if not download.step(self.objects):
                return False
        packed = head.packed(download.body)
        if key.base is not None:
            apply_patch(self.fragments, packed, head.digest)
            self.patches, self.changed = self.patches + 1, self.changed + head.changed
        else:
            found = unpack_anchor(self.numels, packed)
            if digest_of(found) != head.digest:
                raise PayloadError("an anchor holds other weights than it says")
            self.fragments, self.anchors = found, self.anchors + 1
        self.at = Version(number=key.version, digest=head.digest, tokens=head.tokens, last=head.last)
        return True


def _way(sizes: Mapping[HeadKey, int], start: HeadKey) -> list[HeadKey]:
    """As far as patches lead after this step, the smaller where two lead on."""
    way = [start]
    while onward := [key for key in sizes if key.base == way[-1].version]:
        way.append(min(onward, key=lambda key: (sizes[key], key)))
    return way
