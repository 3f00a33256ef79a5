"""Elias-Fano coding of ascending places in one long vector, for codecs that send a varying number of them.

Elias 1974; Fano 1971. For m places below n: `l = floor(log2(n / m))` low bits of each as they are, then, from a new
byte, a bitmap of m + (n >> l) bits of which bit `(place_i >> l) + i` is set. Bits fill bytes from the low end.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowcomm.types import PayloadError


def sizes(n: int, m: int) -> tuple[int, int, int]:
    """Low bits of each place, bytes of the low bits, bytes of the bitmap."""
    if m == 0:
        return 0, 0, 0
    low = (n // m).bit_length() - 1
    return low, -(-m * low // 8), -(-(m + (n >> low)) // 8)


def encode(places: Tensor, n: int) -> Tensor:
    """uint8 [sum of the last two of `sizes`] of `places` (int64 [m] on the CPU, strictly ascending, below n)."""
    found = places.numpy()
    low, low_bytes, high_bytes = sizes(n, len(found))
    shifts = np.arange(low, dtype=np.int64)
    lower = pack_bits(((found[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1))
    bits = np.zeros(8 * high_bytes, dtype=np.uint8)
    bits[(found >> low) + np.arange(len(found))] = 1
    packed = np.concatenate([lower, pack_bits(bits)])
    assert len(packed) == low_bytes + high_bytes
    return torch.from_numpy(packed)


def decode(packed: Tensor, n: int, m: int) -> Tensor:
    """The places, int64 [m]. Raises PayloadError for bytes that `encode` can't have made."""
    low, low_bytes, high_bytes = sizes(n, m)
    raw = packed.cpu().numpy()
    if len(raw) != low_bytes + high_bytes:
        raise PayloadError(f"the payload's places take {len(raw)} bytes, expected {low_bytes + high_bytes}")
    lower = np.unpackbits(raw[:low_bytes], bitorder="little")
    set_bits = np.flatnonzero(np.unpackbits(raw[low_bytes:], bitorder="little"))
    if len(set_bits) != m or lower[m * low :].any():
        raise PayloadError("the payload's places are not Elias-Fano coded")
    found = (set_bits - np.arange(m)).astype(np.int64) << low
    weights = np.int64(1) << np.arange(low, dtype=np.int64)
    found |= (lower[: m * low].reshape(m, low) * weights).sum(axis=1, dtype=np.int64)
    if m and (found[-1] >= n or (np.diff(found) <= 0).any()):
        raise PayloadError("the payload's places do not ascend or lie outside the vector")
    return torch.from_numpy(found)


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """uint8, eight bits to a byte from the low end."""
    return np.packbits(bits, bitorder="little")
