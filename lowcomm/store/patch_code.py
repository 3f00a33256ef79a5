"""Patches between two versions of bf16 weights, and whole anchors, both without loss.

After PULSESync (arXiv 2602.03839):

    idx = { i : bf16(w_new)_i != bf16(w_base)_i },   sent: idx, bf16(w_new)_idx;   receiver: w_idx <- what was sent

Shapes: one flat uint16 array (the bits of bf16 values) per fragment. Per fragment and changed entry: its distance to
the one before as a byte (larger ones apart as 8 bytes), and its value as two planes of bytes; zstd over each stream.
Values come in whichever of two forms is shorter in all: "bits", the new value, by which the receiver overwrites, as in
the paper; "steps", by how many representable values it moved (16-bit integers that wrap), which are mostly +-1 at small
learning rates. Both are whole numbers, so that the bits are the same on every machine; digests prove it.
Cost: about 1.1 bytes for the place and 0.3 ("steps") to 1.7 bytes ("bits") for the value of an entry that changed;
an anchor has about 1.5 bytes for each entry.
Errors: PayloadError for streams that are not of these shapes; nothing is written then.
Deviates: "steps". Reduces to: the anchor, where every entry changed; nothing, where none did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xxhash
from torch import Tensor

from lowcomm.codec.zstd import Zstd
from lowcomm.types import PayloadError

Bits = np.ndarray
"""uint16 [numel]: bf16 values of a fragment."""
Form = Literal["bits", "steps"]
FAR = 255
"""A distance from here on is written apart."""
PATCH_STREAMS, ANCHOR_STREAMS = 4, 2
"""Per fragment: near and far distances, low and high bytes of values; and these two alone."""
_ZSTD = Zstd(level=3)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A patch or an anchor as bytes."""

    form: Form
    sizes: tuple[tuple[int, int], ...]
    """Of each stream: bytes before and after zstd; the streams of a fragment one after the other."""
    body: bytes
    changed: int
    """Entries in it."""


def check_zstd() -> None:
    """Raise ConfigError where zstandard is missing."""
    _ZSTD.check()


def bits_of(weights: Tensor) -> Bits:
    """bf16 values, rounded to the nearest, of flat fp32 weights on the CPU."""
    return weights.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def values_of(bits: Bits) -> Tensor:
    """The same as bf16, without a copy."""
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def digest_of(fragments: Sequence[Bits]) -> str:
    """xxh3-128 over all bits, in hex."""
    state = xxhash.xxh3_128()
    for bits in fragments:
        state.update(bits.view(np.uint8).data)
    return state.hexdigest()


def pack_anchor(new: Sequence[Bits]) -> Packed:
    """Every entry."""
    return _packed("bits", [stream for bits in new for stream in _planes(bits)], sum(map(len, new)))


def pack_patch(base: Sequence[Bits], new: Sequence[Bits]) -> Packed:
    """The entries that differ, in the form that is shorter."""
    return min(pack_forms(base, new), key=lambda one: len(one.body))


def pack_forms(base: Sequence[Bits], new: Sequence[Bits]) -> tuple[Packed, Packed]:
    """The same as "bits" and as "steps"."""
    streams: dict[Form, list[bytes]] = {"bits": [], "steps": []}
    changed = 0
    for old, now in zip(base, new, strict=True):
        places = np.flatnonzero(old != now)
        changed += len(places)
        near, far = _distances(places)
        steps = (now[places] - old[places]).astype(np.int16)
        streams["bits"] += [near, far, *_planes(now[places])]
        streams["steps"] += [near, far, *_planes(_zigzag(steps))]
    return _packed("bits", streams["bits"], changed), _packed("steps", streams["steps"], changed)


def unpack_anchor(numels: Sequence[int], packed: Packed) -> list[Bits]:
    """New arrays of these lengths. Raises PayloadError."""
    streams = _unpacked(packed, ANCHOR_STREAMS, numels)
    found = []
    for index, numel in enumerate(numels):
        low, high = streams[ANCHOR_STREAMS * index : ANCHOR_STREAMS * (index + 1)]
        if len(low) != numel:
            raise PayloadError(f"an anchor has {len(low)} entries of fragment {index}, expected {numel}")
        found.append(_joined(low, high))
    return found


def apply_patch(fragments: Sequence[Bits], packed: Packed, digest: str) -> None:
    """Write into these arrays; they have the digest then, or are as they were. Raises PayloadError."""
    streams = _unpacked(packed, PATCH_STREAMS, [len(bits) for bits in fragments])
    writes = []
    for index, bits in enumerate(fragments):
        near, far, low, high = streams[PATCH_STREAMS * index : PATCH_STREAMS * (index + 1)]
        places, values = _places(near, far, len(bits)), _joined(low, high)
        if len(values) != len(places):
            raise PayloadError(f"a patch has {len(places)} places and {len(values)} values in fragment {index}")
        old = bits[places]
        writes.append((bits, places, old, values if packed.form == "bits" else old + _unzigzag(values)))
    for bits, places, _, values in writes:
        bits[places] = values
    if digest_of(fragments) != digest:
        for bits, places, old, _ in writes:
            bits[places] = old
        raise PayloadError("a patch leads to other weights than it says")


def _packed(form: Form, streams: Sequence[bytes], changed: int) -> Packed:
    pieces = [_ZSTD.pack(stream) for stream in streams]
    sizes = tuple((len(raw), len(piece)) for raw, piece in zip(streams, pieces, strict=True))
    return Packed(form=form, sizes=sizes, body=b"".join(pieces), changed=changed)


def _unpacked(packed: Packed, each: int, numels: Sequence[int]) -> list[bytes]:
    """The streams, `each` of a fragment; none can be longer than 8 bytes for each of its entries."""
    count = each * len(numels)
    if len(packed.sizes) != count or sum(size for _, size in packed.sizes) != len(packed.body):
        raise PayloadError(f"a body of {len(packed.body)} bytes has not the {count} streams that its head lists")
    found, at = [], 0
    for number, (raw, size) in enumerate(packed.sizes):
        if raw > 8 * numels[number // each]:
            raise PayloadError(f"a stream of {raw} bytes for {numels[number // each]} entries")
        found.append(_ZSTD.unpack(packed.body[at : at + size], raw))
        at += size
    return found


def _planes(values: np.ndarray) -> tuple[bytes, bytes]:
    """Low and high bytes of 16-bit values: the high ones, sign and exponent, shrink best apart."""
    low_first = values.astype("<u2", copy=False).view(np.uint8)
    return low_first[0::2].tobytes(), low_first[1::2].tobytes()


def _joined(low: bytes, high: bytes) -> Bits:
    if len(low) != len(high):
        raise PayloadError(f"planes of {len(low)} and {len(high)} bytes")
    values = np.frombuffer(high, np.uint8).astype(np.uint16) << np.uint16(8)
    return values | np.frombuffer(low, np.uint8)


def _distances(places: np.ndarray) -> tuple[bytes, bytes]:
    """Entries between two that changed, and before the first: bytes, and the large ones apart."""
    gaps = np.diff(places, prepend=-1) - 1
    return np.minimum(gaps, FAR).astype(np.uint8).tobytes(), gaps[gaps >= FAR].astype("<u8").tobytes()


def _places(near: bytes, far: bytes, numel: int) -> np.ndarray:
    if len(near) > numel:
        raise PayloadError(f"a patch changes {len(near)} entries of {numel}")
    gaps = np.frombuffer(near, np.uint8).astype(np.int64)
    large, rest = np.flatnonzero(gaps == FAR), divmod(len(far), 8)
    if rest != (len(large), 0):
        raise PayloadError(f"{len(large)} large distances, and {len(far)} bytes of them")
    values = np.frombuffer(far, "<u8")
    if len(values) and not FAR <= int(values.min()) <= int(values.max()) < numel:
        raise PayloadError("a distance out of its range")
    gaps[large] = values
    places = np.cumsum(gaps + 1) - 1
    if len(places) and not 0 <= int(places[-1]) < numel:
        raise PayloadError(f"a patch changes entry {places[-1]} of {numel}")
    return places


def _zigzag(steps: np.ndarray) -> np.ndarray:
    """Small numbers of either sign as small ones without."""
    return ((steps << 1) ^ (steps >> 15)).view(np.uint16)


def _unzigzag(values: np.ndarray) -> np.ndarray:
    return (values >> np.uint16(1)) ^ (np.uint16(0) - (values & np.uint16(1)))
