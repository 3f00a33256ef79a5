"""Masks from seeds: ChaCha20 key streams, readable from any entry on."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

BLOCK_BYTES = 64


def mask(seed: bytes, start: int, count: int, dtype: np.dtype) -> np.ndarray:
    """Entries `start` to `start + count` of the stream of a 32-byte seed, which is used for one stream only."""
    first = start * dtype.itemsize
    block, skipped = divmod(first, BLOCK_BYTES)
    nonce = block.to_bytes(8, "little") + bytes(8)  # the counter of blocks, and a nonce of 0
    stream = Cipher(ChaCha20(seed, nonce), mode=None).encryptor()
    drawn = stream.update(bytes(skipped + count * dtype.itemsize))
    return np.frombuffer(drawn, dtype=dtype, offset=skipped)
