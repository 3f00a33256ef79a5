"""Philox-4x32-10 for numba kernels; the scheme of words and halves is in `philox.py`."""

from __future__ import annotations

import numpy as np
from numba import njit

# The reason for these options is in blocks_numba.py, which imports this file.
_INNER = {"cache": True, "fastmath": False, "error_model": "numpy", "forceinline": True, "_nrt": False}

_A = np.uint64(0xD2511F53)
_B = np.uint64(0xCD9E8D57)
_KEY_A = np.uint32(0x9E3779B9)
_KEY_B = np.uint32(0xBB67AE85)
_SHIFT = np.uint64(32)


@njit(**_INNER)
def philox4x32(counter, seed):
    """Four uint32 words for one counter (int64 >= 0) under the signed 64-bit seed."""
    k0, k1 = np.uint32(seed), np.uint32(seed >> 32)
    c0, c1 = np.uint32(counter), np.uint32(counter >> 32)
    c2, c3 = np.uint32(0), np.uint32(0)
    for _ in range(10):
        a = np.uint64(c0) * _A
        b = np.uint64(c2) * _B
        c0 = np.uint32(np.uint32(b >> _SHIFT) ^ c1 ^ k0)
        c1 = np.uint32(b)
        c2 = np.uint32(np.uint32(a >> _SHIFT) ^ c3 ^ k1)
        c3 = np.uint32(a)
        k0 = np.uint32(k0 + _KEY_A)
        k1 = np.uint32(k1 + _KEY_B)
    return c0, c1, c2, c3


@njit(**_INNER)
def fill_random16(out, offset, seed):
    """Fill `out` (uint16 [n], n a multiple of 8) with the bits of elements `offset ... offset + n - 1`."""
    words = out.view(np.uint32)
    first = offset // 8
    for j in range(out.size // 8):
        w0, w1, w2, w3 = philox4x32(first + j, seed)
        words[4 * j] = w0
        words[4 * j + 1] = w1
        words[4 * j + 2] = w2
        words[4 * j + 3] = w3
