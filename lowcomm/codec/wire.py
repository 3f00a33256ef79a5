"""The wire format: a 64-byte header before every body, checked before anything is allocated or decoded.

    offset  bytes  field (little-endian)
         0      4  magic "LCPD"
         4      2  format version
         6      2  codec id
         8      8  hash of names and shapes
        16      8  round
        24      8  seed of the round: differs between runs, so a payload of another run is refused as well
        32      4  part           36   4  parts: a vector that is cut on its way has one payload per part
        40      8  body length
        48      8  checksum over the header before it and the body
        56      8  zero

The checksum is xxh3-64: a 64-bit code misses an accidental change with probability 2**-64 where CRC32C's 32 bits miss
one in 4e9, it runs at memory speed in a library that is installed anyway, and no well-kept CRC32C package is. It
detects accidents; it is no signature. Cost: 64 B per payload. 64 keeps the body aligned for any dtype.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import torch
import xxhash
from torch import Tensor

from lowcomm.types import Delta, Payload, PayloadError, Round

MAGIC = b"LCPD"
VERSION = 1
HEADER_BYTES = 64
FIELDS = struct.Struct("<4sHHQQQIIQ")
_SUM = struct.Struct("<QQ")
_MASK = 2**64 - 1


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


def shapes_hash(like: Delta) -> int:
    """64-bit hash of names and shapes, in order."""
    text = ";".join(f"{name}:{tuple(d.shape)}" for name, d in like.items())
    return xxhash.xxh3_64_intdigest(text.encode())


def new(body_bytes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An uninitialised payload, uint8 [64 + body_bytes], and its body as a view to be filled before `seal`."""
    data = torch.empty(HEADER_BYTES + body_bytes, dtype=torch.uint8, device=device)
    return data, data[HEADER_BYTES:]


def seal(data: Tensor, codec_id: CodecId, shapes: int, round: Round, part: Part = WHOLE) -> Payload:
    """Write the header of `data` (from `new`, body filled); `shapes` is that of `shapes_hash`."""
    fields = (MAGIC, VERSION, codec_id, shapes, round.index & _MASK, round.seed & _MASK, part.index, part.count)
    head = FIELDS.pack(*fields, data.numel() - HEADER_BYTES)
    raw = bytearray(head + _SUM.pack(_checksum(head, data), 0))
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

    round: the round that is expected; None takes any. body_bytes: its size, for codecs whose payloads have one.
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
    magic, version, found_id, found_shapes, index, seed, number, count, length = FIELDS.unpack_from(raw)
    if magic != MAGIC:
        raise PayloadError(f"the payload starts with {magic!r}, not {MAGIC!r}: it is not one of ours")
    _same("format version", version, VERSION)
    _same("codec id", found_id, int(codec_id))
    _same("hash of names and shapes", found_shapes, shapes)
    if round is not None:
        age = "stale" if index < round.index & _MASK else "future"
        if index != round.index & _MASK:
            raise PayloadError(f"the payload is of {age} round {index}, this is round {round.index}")
        _same("seed of the round", seed, round.seed & _MASK)
    _same("part", (number, count), (part.index, part.count))
    _same("body length in bytes", length, data.numel() - HEADER_BYTES)
    if body_bytes is not None:
        _same("body length in bytes", length, body_bytes)
    checksum, zero = _SUM.unpack_from(raw, FIELDS.size)
    _same("checksum", (checksum, zero), (_checksum(raw[: FIELDS.size], data), 0))
    body = data[HEADER_BYTES:]
    # a row of a gathered matrix may start anywhere, but a view as another dtype needs a multiple of its size
    return body if body.storage_offset() % 8 == 0 else body.clone()


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise PayloadError(f"the payload's {what} is {found}, expected {expected}")


def _checksum(head: bytes, data: Tensor) -> int:
    state = xxhash.xxh3_64(head)
    state.update(data[HEADER_BYTES:].cpu().numpy().data)
    return state.intdigest()
