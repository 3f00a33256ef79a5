"""Contributions that were read, checked and are not settled: fetched once, their announced sizes looked at first."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lowcomm.codec import wire
from lowcomm.codec.packed import most_bytes
from lowcomm.store import keys, text
from lowcomm.store.contribution import MOST_HEAD_BYTES, Contribution, Damaged, Header, parts_of, unpack
from lowcomm.store.objects import Objects
from lowcomm.store.parts import Download
from lowcomm.store.rules import ChainRules
from lowcomm.types import PayloadError

MOST_SECTIONS_BYTES = 1 << 24
"""Of all sections beside the Delta."""


class Payloads:
    """What lies under contributions' keys, as far as it was read."""

    def __init__(self, objects: Objects, rules: ChainRules) -> None:
        self.objects = objects
        self.held: dict[str, Contribution | Damaged] = {}
        likes = [layout.views(torch.empty(layout.numel, device="meta")) for layout in rules.layouts]
        self.most_body_bytes = wire.HEADER_BYTES + max(most_bytes(like) for like in likes) + MOST_SECTIONS_BYTES

    def fetch_all(self, wanted: Iterable[str]) -> dict[str, Contribution | Damaged] | None:
        """All of them; None: some can't be read, for now or for good. Damaged ones are read again."""
        found: dict[str, Contribution | Damaged] = {}
        for key in wanted:
            if isinstance(self.held.get(key), Damaged):
                del self.held[key]
            if (one := self.fetch(key)) is not None:
                found[key] = one
            else:
                return None
        return found

    def fetch(self, key: str) -> Contribution | Damaged | None:
        """What lies under the key; None: nothing can be read. Raises StoreError."""
        if key not in self.held and (one := self._read(key)) is not None:
            self.held[key] = one
        return self.held.get(key)

    def drop(self, oldest: int, settled: Iterable[str]) -> None:
        """Forget what nobody may use any more: bases before `oldest`, and what was used."""
        gone = {*settled, *(key for key in self.held if (keys.base_of(key) or 0) < oldest)}
        self.held = {key: one for key, one in self.held.items() if key not in gone}

    def _read(self, key: str) -> Contribution | Damaged | None:
        most = MOST_HEAD_BYTES + self.most_body_bytes
        data = self.objects.get_range(key, 0, most + 1)
        if data is None:
            return None
        digest = text.sha256(data)
        if len(data) > most:
            return Damaged(sha256=digest, why=f"it has more than {most} bytes")
        try:
            header, _ = Header.read(data)
            if header.body_bytes > self.most_body_bytes:
                raise PayloadError(f"its body has {header.body_bytes} bytes, {self.most_body_bytes} at most")
            if not header.parts:
                return unpack(key, data)
            if header.key != key:
                raise PayloadError(f"it says that it is {header.key}")
            download = Download(parts_of(header), most_bytes=self.most_body_bytes)
            while (body := download.body) is None:
                if not download.step(self.objects):
                    return None
            return unpack(key, data, body)
        except PayloadError as error:
            return Damaged(sha256=digest, why=str(error))
