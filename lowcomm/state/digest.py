"""Digests of tensors: the islands compare them after every outer step, so that a fork is seen at once.

xxh3-128 (xxhash, a well-kept library at memory speed): it detects accidents; it is not a signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import xxhash
from torch import Tensor


def digest(tensor: Tensor) -> bytes:
    """16 bytes over the raw bits of a tensor of any dtype and device."""
    data = tensor.detach().contiguous().reshape(-1).cpu().view(torch.uint8)
    return xxhash.xxh3_128_digest(data.numpy().data)


class Digest:
    """The same digest, tensor by tensor."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, tensor: Tensor) -> None:
        """Append the raw bits of a tensor."""
        data = tensor.detach().contiguous().reshape(-1).cpu().view(torch.uint8)
        self._state.update(data.numpy().data)

    def value(self) -> bytes:
        """16 bytes over everything so far."""
        return self._state.digest()


def digest_all(tensors: Mapping[str, Tensor]) -> bytes:
    """16 bytes over names, shapes, dtypes and bits, in order."""
    state = xxhash.xxh3_128()
    for name, tensor in tensors.items():
        state.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        state.update(digest(tensor))
    return state.digest()


def sha256_weights(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names and fp32 bits in name order: what summary.json reports."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].detach().float().contiguous().reshape(-1).cpu().view(torch.uint8).numpy().data)
    return state.hexdigest()


def mix(first: bytes, second: bytes) -> bytes:
    """One digest of two."""
    return digest(torch.frombuffer(bytearray(first + second), dtype=torch.uint8))
