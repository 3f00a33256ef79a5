"""Entries of an ordered log: an 88-byte header, then a codec's payload (with its own header, see `codec/wire.py`).

offset  bytes  field (little-endian)
     0      4  magic "LCLE"
     4      2  format version
     6      2  kind: contribution, done, close, digest, full
     8      4  island
    12      4  sequence number: contributions of this island before it
    16      8  run
    24      8  base version: of the anchor that the Delta was taken from; of "full": of the anchor that it leads from
    32      8  epoch: times that the islands have finished before (kinds other than contributions)
    40      8  body length
    48      8  tokens (float64)
    56      8  L2 norm of the Delta (float64)
    64      8  inner steps that a contribution holds
    72      8  seconds since its author's last contribution, on its author's clock (float64); 0: not known
    80      8  xxh3-64 of the header before it and the body: it detects accidents, it is no signature
"""

from __future__ import annotations

import dataclasses
import math
import struct
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from lowcomm.types import PayloadError

MAGIC, VERSION = b"LCLE", 2
_FIELDS = struct.Struct("<4sHHIIQQQQddQd")
_SUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _SUM.size


class Kind(IntEnum):
    """What an entry says."""

    CONTRIBUTION = 1
    DONE = 2
    """The island has contributed all it has trained."""
    CLOSE = 3
    """Whoever is not done by now is not waited for: the first one in the log counts."""
    DIGEST = 4
    """The bits that the island holds after the end."""
    FULL = 5
    """What waits makes a version: the first one for a version counts. Of rules that look at times."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry; fields as in the header."""

    kind: Kind
    island: int
    run: int
    sequence: int = 0
    base_version: int = 0
    epoch: int = 0
    tokens: float = 0.0
    norm: float = 0.0
    steps: int = 0
    took_s: float = 0.0
    body: bytes = dataclasses.field(default=b"", repr=False)

    def pack(self) -> bytes:
        """Its bytes."""
        head = _FIELDS.pack(
            MAGIC, VERSION, self.kind, self.island, self.sequence, self.run, self.base_version, self.epoch,
            len(self.body), self.tokens, self.norm, self.steps, self.took_s,
        )  # fmt: skip
        return b"".join((head, _SUM.pack(_checksum(head, self.body)), self.body))

    @classmethod
    def unpack(cls, data: bytes) -> Entry:
        """The entry of these bytes. Raises PayloadError for anything that `pack` can't have made."""
        if len(data) < HEADER_BYTES:
            raise PayloadError(f"the entry has {len(data)} bytes, its header alone needs {HEADER_BYTES}")
        head, body = data[: _FIELDS.size], data[HEADER_BYTES:]
        magic, version, kind, island, sequence, run, base, epoch, size, tokens, norm, steps, took_s = _FIELDS.unpack(
            head
        )
        if magic != MAGIC or version != VERSION:
            raise PayloadError(f"the entry begins with {magic!r}, format {version}, expected {MAGIC!r}, {VERSION}")
        if size != len(body):
            raise PayloadError(f"the entry's body has {len(body)} bytes, its header says {size}")
        if _SUM.unpack_from(data, _FIELDS.size) != (_checksum(head, body),):
            raise PayloadError("the entry's checksum is not that of what it holds")
        if kind not in set(Kind):
            raise PayloadError(f"the entry is of kind {kind}, expected one of {[int(k) for k in Kind]}")
        if not (math.isfinite(tokens) and tokens >= 0):
            raise PayloadError(f"the entry's token count is {tokens}")
        if not (math.isfinite(took_s) and took_s >= 0):
            raise PayloadError(f"the entry's seconds are {took_s}")
        return cls(
            kind=Kind(kind), island=island, run=run, sequence=sequence, base_version=base, epoch=epoch,
            tokens=tokens, norm=norm, steps=steps, took_s=took_s, body=body,
        )  # fmt: skip


def _checksum(head: bytes, body: bytes) -> int:
    state = xxhash.xxh3_64(head)
    state.update(body)
    return state.intdigest()
