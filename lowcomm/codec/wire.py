"""The wire format: a 64-byte header before every body, checked before anything is allocated or decoded.

    offset  bytes  field (little-endian)
         0      4  magic "LCPD"
         4      2  format version
         6      2  codec id
         8      8  run: a random number on which the islands agree in the handshake
        16      8  hash of names and shapes
        24      4  round
        28      2  sender: the island that encoded it, 65535 where nobody is named
        30      2  fragment
        32      4  part           36   4  parts: a vector that is cut on its way has one payload per part
        40      8  body length
        48      8  seed of the round
        56      8  checksum over the header before it and the body

So a payload of another island, run, round or fragment is refused, whatever its body holds. A receiver says whom it
expects by `Round.island`.
The checksum is xxh3-64: a 64-bit code misses an accidental change with probability 2**-64 where CRC32C's 32 bits miss
one in 4e9, it runs at memory speed in a library that is installed anyway, and no well-kept CRC32C package is. It
detects accidents; it is no signature. Cost: 64 B per payload. 64 keeps the body aligned for any dtype.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from lowcomm.types import Delta, Payload, PayloadError, Round

MAGIC = b"LCPD"
VERSION = 2
HEADER_BYTES = 64
FIELDS = struct.Struct("<4sHHQQIHHIIQQ")
_SUM = struct.Struct("<Q")
_MASK = 2**64 - 1
_ROUND_MASK = 2**32 - 1
NOBODY = 0xFFFF
"""The sender of a payload that no island is named for."""


class CodecId(IntEnum):
    """What each codec writes into its headers. Numbers are never reused: old payloads must stay refusable."""

    FP32 = 1
    BF16 = 2
    FP8 = 3
    INT8 = 4
    INT4 = 5
    TWO_BIT = 6
    SIGN = 7
    TOP_K = 16
    RANDOM_K = 17
    PARTIAL_SHARING = 18
    THRESHOLD = 19
    POWER_SGD = 32
    DCT_TOP_K = 33
    FEDZIP = 34
    RQM = 35
    LION = 36
    CHAIN = 48
    ZSTD = 49
    ANS = 50
    PARTS = 51


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of a vector a payload holds: number `index` of `count`."""

    index: int
    count: int


WHOLE = Part(index=0, count=1)


class Header(NamedTuple):
    """The fields before the checksum, in the order of the wire."""

    magic: bytes
    version: int
    codec_id: int
    run: int
    shapes: int
    round: int
    sender: int
    fragment: int
    part: int
    parts: int
    body_bytes: int
    seed: int

    @classmethod
    def of(cls, data: Tensor) -> Header:
        """The header of a payload that has one."""
        return cls(*FIELDS.unpack_from(bytes(data[:HEADER_BYTES].cpu().numpy())))


def shapes_hash(like: Delta) -> int:
    """64-bit hash of names and shapes, in order."""
    text = ";".join(f"{name}:{tuple(d.shape)}" for name, d in like.items())
    return xxhash.xxh3_64_intdigest(text.encode())


def new(body_bytes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An uninitialised payload, uint8 [64 + body_bytes], and its body as a view to be filled before `seal`."""
    data = torch.empty(HEADER_BYTES + body_bytes, dtype=torch.uint8, device=device)
    return data, data[HEADER_BYTES:]


def seal(data: Tensor, codec_id: CodecId, shapes: int, round: Round, part: Part = WHOLE) -> Payload:
    """Write the header of `data` (from `new`, body filled); `shapes` is that of `shapes_hash`.

    The sender is `round.island`. Raises PayloadError for an island or a fragment that the header has no room for.
    """
    fields = Header(
        magic=MAGIC,
        version=VERSION,
        codec_id=codec_id,
        run=round.run & _MASK,
        shapes=shapes,
        round=round.index & _ROUND_MASK,
        sender=NOBODY if round.island is None else _small("island", round.island),
        fragment=_small("fragment", round.fragments[0]),
        part=part.index,
        parts=part.count,
        body_bytes=data.numel() - HEADER_BYTES,
        seed=round.seed & _MASK,
    )
    head = FIELDS.pack(*fields)
    raw = bytearray(head + _SUM.pack(_checksum(head, data)))
    data[:HEADER_BYTES].copy_(torch.frombuffer(raw, dtype=torch.uint8))
    return Payload(data=data)


def pack(codec_id: CodecId, like: Delta, round: Round, body: Tensor) -> Payload:
    """A payload around `body` (1-D, any dtype, copied once). Codecs in a hurry fill the view that `new` gives."""
    raw = body.reshape(-1).view(torch.uint8)
    data, room = new(raw.numel(), raw.device)
    room.copy_(raw)
    return seal(data, codec_id, shapes_hash(like), round)


def unpack(
    payload: Payload,
    codec_id: CodecId,
    like: Delta,
    round: Round | None = None,
    *,
    body_bytes: int | None = None,
    part: Part = WHOLE,
) -> Tensor:
    """The body, uint8, a view of the payload at an offset that any dtype can view, after all that the header can tell.

    round: the round, run and fragment that are expected, and by its `island` the sender (None: any); None takes all.
    body_bytes: its size, for codecs whose payloads have one.
    Raises PayloadError.
    """
    return open_body(payload, codec_id, shapes_hash(like), round, body_bytes=body_bytes, part=part)


def open_body(
    payload: Payload,
    codec_id: CodecId,
    shapes: int,
    round: Round | None,
    *,
    body_bytes: int | None = None,
    part: Part = WHOLE,
) -> Tensor:
    """`unpack` for callers who have the hash of the shapes already."""
    data = payload.data
    if data.dtype != torch.uint8 or data.dim() != 1 or not data.is_contiguous():
        raise PayloadError(f"a payload is contiguous 1-D uint8, this is {data.dtype} {tuple(data.shape)}")
    if data.numel() < HEADER_BYTES:
        raise PayloadError(f"the payload has {data.numel()} bytes, its header alone needs {HEADER_BYTES}")
    raw = bytes(data[:HEADER_BYTES].cpu().numpy())
    found = Header(*FIELDS.unpack_from(raw))
    if found.magic != MAGIC:
        raise PayloadError(f"the payload starts with {found.magic!r}, not {MAGIC!r}: it is not one of ours")
    _same("format version", found.version, VERSION)
    if round is not None:
        _check_round(found, round)
    _same("codec id", found.codec_id, int(codec_id))
    _same("hash of names and shapes", found.shapes, shapes)
    _same("part", (found.part, found.parts), (part.index, part.count))
    _same("body length in bytes", found.body_bytes, data.numel() - HEADER_BYTES)
    if body_bytes is not None:
        _same("body length in bytes", found.body_bytes, body_bytes)
    (checksum,) = _SUM.unpack_from(raw, FIELDS.size)
    _same("checksum", checksum, _checksum(raw[: FIELDS.size], data))
    body = data[HEADER_BYTES:]
    # a row of a gathered matrix may start anywhere, but a view as another dtype needs a multiple of its size
    return body if body.storage_offset() % 8 == 0 else body.clone()


def _check_round(found: Header, round: Round) -> None:
    """Raise PayloadError unless the header is of this run, sender, fragment and round."""
    if found.run != round.run & _MASK:
        raise PayloadError(f"the payload is of run {found.run:016x}, this is run {round.run & _MASK:016x}")
    if round.island is not None and found.sender != round.island:
        sender = "no island" if found.sender == NOBODY else f"island {found.sender}"
        raise PayloadError(f"the payload is of {sender}, expected one of island {round.island}")
    if found.fragment != round.fragments[0]:
        raise PayloadError(f"the payload is of fragment {found.fragment}, expected fragment {round.fragments[0]}")
    if found.round != round.index & _ROUND_MASK:
        age = "stale" if found.round < round.index & _ROUND_MASK else "future"
        raise PayloadError(f"the payload is of {age} round {found.round}, this is round {round.index}")
    _same("seed of the round", found.seed, round.seed & _MASK)


def _small(what: str, number: int) -> int:
    if not 0 <= number < NOBODY:
        raise PayloadError(f"a payload can't name {what} {number}: there is room for 0 to {NOBODY - 1}")
    return number


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise PayloadError(f"the payload's {what} is {found}, expected {expected}")


def _checksum(head: bytes, data: Tensor) -> int:
    state = xxhash.xxh3_64(head)
    state.update(data[HEADER_BYTES:].cpu().numpy().data)
    return state.intdigest()
