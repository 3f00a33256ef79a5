"""numba form of the Elias-Fano code; the specification is in `__init__.py`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.elias_fano.layout import low_bits, section_bytes
from lowcomm_kernels.topk.layout import Chunks


@njit(cache=True, fastmath=False, error_model="numpy")
def _encode_chunk(indices, n, low, low_size, code):
    code[:] = 0
    mask = (1 << low) - 1
    last = -1
    for i in range(indices.size):
        index = np.int64(indices[i])
        if index <= last or index >= n:
            return False
        last = index
        at = i * low
        piece = (index & mask) << (at & 7)
        at >>= 3
        while piece:
            code[at] |= np.uint8(piece & 0xFF)
            piece >>= 8
            at += 1
        place = (index >> low) + i
        code[low_size + (place >> 3)] |= np.uint8(1 << (place & 7))
    return True


@njit(cache=True, fastmath=False, error_model="numpy")
def _decode_chunk(code, n, low, low_size, indices, high):
    """Fill `indices` [k]; `high` is int64 scratch of at least k + 1. False if malformed."""
    k = indices.size
    found = 0
    for byte in range(low_size, code.size):
        eight = np.int64(code[byte])
        for bit in range(8):
            # Without a branch: half of the bits are set, so a branch would be wrong half of the time. What comes
            # after the last set bit, and too many set bits, land in the spare entry.
            high[min(found, k)] = 8 * (byte - low_size) + bit - found
            found += (eight >> bit) & 1
    if found != k:
        return False
    if (k * low) & 7 and code[low_size - 1] >> ((k * low) & 7):
        return False
    mask = (1 << low) - 1
    last = -1
    end = code.size - 1
    for i in range(k):
        at = (i * low) >> 3
        # 16 low bits that start inside a byte reach into a third; past the end only masked bits are read.
        three = np.int64(code[min(at, end)]) | np.int64(code[min(at + 1, end)]) << 8
        three |= np.int64(code[min(at + 2, end)]) << 16
        index = high[i] << low | ((three >> ((i * low) & 7)) & mask)
        if index <= last or index >= n:
            return False
        last = index
        indices[i] = index
    return True


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _run(indices, packed, full, chunk, k, low, low_size, size, tail, encode, bad):
    tail_n, tail_k, tail_low, tail_low_size = tail
    for c in prange(bad.size):
        kept = indices[c * k : c * k + (k if c < full else tail_k)]
        code = packed[c * size : (c + 1) * size] if c < full else packed[c * size :]
        n = chunk if c < full else tail_n
        shift = low if c < full else tail_low
        start = low_size if c < full else tail_low_size
        if encode:
            bad[c] = not _encode_chunk(kept, n, shift, start, code)
        else:
            bad[c] = not _decode_chunk(code, n, shift, start, kept, np.empty(kept.size + 1, np.int64))


def _call(indices: Tensor, packed: Tensor, chunks: Chunks, encode: bool) -> int | None:
    low_size, upper_size = section_bytes(chunks.chunk, chunks.k)
    tail = (0, 0, 0, 0)
    if chunks.tail:
        tail_low = low_bits(chunks.tail, chunks.tail_k)
        tail = (chunks.tail, chunks.tail_k, tail_low, section_bytes(chunks.tail, chunks.tail_k)[0])
    bad = np.zeros(chunks.count, np.bool_)
    low = low_bits(chunks.chunk, chunks.k)
    shape = (chunks.full, chunks.chunk, chunks.k, low, low_size, low_size + upper_size, tail)
    _run(indices.numpy(), packed.numpy(), *shape, encode, bad)
    return int(bad.argmax()) if bad.any() else None


def encode(indices: Tensor, chunks: Chunks, packed: Tensor) -> int | None:
    """Fill `packed`; the first chunk whose indices are not valid, or None."""
    return _call(indices, packed, chunks, True)


def decode(packed: Tensor, chunks: Chunks, indices: Tensor) -> int | None:
    """Fill `indices`; the first chunk that is malformed, or None."""
    return _call(indices, packed, chunks, False)
