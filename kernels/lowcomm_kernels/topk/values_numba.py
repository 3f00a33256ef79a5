"""numba form of the value coding; the specification is in `values.py`.

`encode_chunk` and `decode_chunk` work on one chunk and are inlined into the fused kernels of other files.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks, chunk_code_bytes

_MAGIC = np.float32(12582912.0)
_REST = np.int32(0x4B400000)
_PER_127 = np.float32(1 / 127)
_MANTISSA = np.int32(0x7FFFFF)
_INFINITY = np.int32(0x7F800000)
_TINY = np.int32(27 << 23)


@njit(cache=True, fastmath=False, error_model="numpy")
def _scale_word(low, high, top):
    length = 0
    while high >> length:
        length += 1
    drop = max(length - 4, 0)
    mantissa = (high + (1 << drop) // 2) >> drop
    if mantissa == 16:
        mantissa, length = 8, length + 1
    exponent = top + length - 24
    if exponent > 254:
        mantissa, length, exponent = 15, length - 1, 254
    unit = max(mantissa << max(length - 4, 0), 1)
    ratio = min((low * 32 + unit // 2) // unit, 31)
    return (exponent << 8 | (mantissa - 8) << 5 | ratio) if exponent >= 27 else 0


@njit(cache=True, fastmath=False, error_model="numpy")
def _encode2(v, q, codes):
    raw = v.view(np.int32)
    k = v.size
    top = np.int32(0x800000)
    for i in range(k):
        b = np.int32(raw[i] & np.int32(0x7FFFFFFF))
        top = b if b > top else top
    top = np.int32(top >> 23)
    total = 0
    for i in range(k):
        b = raw[i] & 0x7FFFFFFF
        exponent = b >> 23
        significand = (b & _MANTISSA) | (0x800000 if exponent > 0 else 0)
        q[i] = significand >> min(top - max(exponent, 1), 31)
        total += q[i]
    twice = 2 * (total // k)
    low = high = total
    for step in range(5):
        if step:
            twice = low + high
        count = above = 0
        for i in range(k):
            member = 2 * q[i] >= twice
            count += np.int64(member)
            above += q[i] if member else 0
        high = above // count
        low = (total - above) // max(k - count, 1)
    word = _scale_word(low, high, top)
    codes[:] = 0
    if word:
        for i in range(k):
            two = np.int64(raw[i] < 0) | (np.int64(2 * q[i] >= twice) << 1)
            codes[i >> 2] |= np.uint8(two << (2 * (i & 3)))
    return word


@njit(cache=True, fastmath=False, error_model="numpy")
def _encode8(v, codes):
    raw = v.view(np.int32)
    top = np.zeros(1, np.int32)
    for i in range(v.size):
        b = np.int32(raw[i] & np.int32(0x7FFFFFFF))
        top[0] = max(b, top[0])
    step = np.empty(1, np.float32)
    step[0] = top.view(np.float32)[0] * _PER_127
    word = min((np.int64(step.view(np.int32)[0]) + 0xFFFF) >> 16, 0x7C01)
    if top[0] < _TINY:
        codes[:] = 0
        return 0
    bits = np.empty(1, np.int32)
    bits[0] = np.int32(word << 16)
    scale = bits.view(np.float32)[0]
    for i in range(v.size):
        step[0] = v[i] / scale + _MAGIC
        codes[i] = np.uint8(min(max(bits_of(step) - _REST, -127), 127) & 0xFF)
    return word


@njit(cache=True, fastmath=False, error_model="numpy")
def bits_of(one):
    return one.view(np.int32)[0]


@njit(cache=True, fastmath=False, error_model="numpy")
def encode_chunk(v, q, codes, bits):
    """Code fp32 `v` [k] into uint8 `codes`; `q` is int64 scratch of at least k. Returns the scale word."""
    if bits == 2:
        return np.int64(_encode2(v, q, codes))
    if bits == 8:
        return np.int64(_encode8(v, codes))
    raw = v.view(np.int32)
    for i in range(v.size):
        b = np.int64(raw[i] & np.int32(0x7FFFFFFF))
        word = min((b + 0x7FFF + ((b >> 16) & 1)) >> 16, 0x7F7F) | (0x8000 if raw[i] < 0 else 0)
        codes[2 * i] = np.uint8(word & 0xFF)
        codes[2 * i + 1] = np.uint8(word >> 8)
    return np.int64(0)


@njit(cache=True, fastmath=False, error_model="numpy")
def decode_chunk(codes, word, bits, v):
    """Fill fp32 `v` [k]; False if the scale or a code is one that no encoder writes."""
    raw = v.view(np.int32)
    if bits == 16:
        good = True
        for i in range(v.size):
            b = np.int64(codes[2 * i]) | np.int64(codes[2 * i + 1]) << 8
            raw[i] = np.int32(b << 16)
            good &= (b & 0x7F80) != 0x7F80
        return good
    level = np.empty(2, np.float32)
    if bits == 8:
        level.view(np.int32)[0] = np.int32(word << 16)
        scale = level[0]
        for i in range(v.size):
            v[i] = np.float32(np.int8(codes[i])) * scale
        return word <= 0x7C01
    exponent = word >> 8
    level.view(np.int32)[1] = np.int32(exponent << 23 | ((word >> 5) & 7) << 20) if exponent >= 27 else np.int32(0)
    level[0] = level[1] * (np.float32(word & 31) * np.float32(0.03125))
    pair = level.view(np.int32)
    for i in range(v.size):
        two = np.int64(codes[i >> 2]) >> (2 * (i & 3))
        raw[i] = np.int32(pair[(two >> 1) & 1] ^ np.int32((two & 1) << 31))
    return exponent < 255


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _encode_all(values, full, k, tail_k, size, bits, codes, scales, bad):
    jobs = bad.size
    count = full + (1 if tail_k else 0)
    for job in prange(jobs):
        q = np.empty(k, np.int64)
        for c in range(count * job // jobs, count * (job + 1) // jobs):
            v = values[c * k : c * k + (k if c < full else tail_k)]
            raw = v.view(np.int32)
            for i in range(v.size):
                bad[job] |= np.uint8(np.int32(raw[i] & np.int32(0x7FFFFFFF)) >= _INFINITY)
            if not bad[job]:
                word = encode_chunk(v, q, codes[c * size :] if c == full else codes[c * size : (c + 1) * size], bits)
                if bits != 16:
                    scales[c] = np.uint16(word)


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _decode_all(codes, scales, full, k, tail_k, size, bits, values, bad):
    jobs = bad.size
    count = full + (1 if tail_k else 0)
    for job in prange(jobs):
        for c in range(count * job // jobs, count * (job + 1) // jobs):
            v = values[c * k : c * k + (k if c < full else tail_k)]
            word = np.int64(scales[c]) if bits != 16 else np.int64(0)
            bad[job] |= np.uint8(not decode_chunk(codes[c * size :], word, bits, v))


def encode(values: Tensor, chunks: Chunks, bits: int, codes: Tensor, scales: Tensor) -> bool:
    """Fill `codes` and `scales`; False if a value is not finite."""
    bad = np.zeros(min(64, max(1, chunks.count)), np.uint8)
    size = chunk_code_bytes(chunks.k, bits)
    shape = (chunks.full, chunks.k, chunks.tail_k, size, bits)
    _encode_all(values.numpy(), *shape, codes.numpy(), scales.numpy(), bad)
    return not bad.any()


def decode(codes: Tensor, scales: Tensor, chunks: Chunks, bits: int, values: Tensor) -> bool:
    """Fill `values`; False if a code or scale is one that no encoder writes."""
    bad = np.zeros(min(64, max(1, chunks.count)), np.uint8)
    size = chunk_code_bytes(chunks.k, bits)
    _decode_all(codes.numpy(), scales.numpy(), chunks.full, chunks.k, chunks.tail_k, size, bits, values.numpy(), bad)
    return not bad.any()
