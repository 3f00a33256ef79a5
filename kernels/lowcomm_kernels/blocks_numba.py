"""Block formats for numba kernels: the formulas of `bits.py` on numpy views, one block at a time."""

# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from lowcomm_kernels.philox_numba import fill_random16

INNER = {"cache": True, "fastmath": False, "error_model": "numpy", "forceinline": True, "_nrt": False}
"""Helpers: in line and without reference counts, whose atomic updates took half of the time of a block."""
RUN = {"cache": True, "fastmath": False, "error_model": "numpy", "_nrt": False}
"""One task's loop over blocks; it allocates nothing, so its scratch is handed in."""
PARALLEL = {"cache": True, "fastmath": False, "error_model": "numpy", "parallel": True}

_MAGIC = np.float32(12582912.0)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_SUM_SHIFT = np.float32(2.0**-12)
_NOISE_STEP = np.float32(2.0**-17)
_TWO_BIT_STEP = np.float32(0.625)
_INF_BITS = np.int32(0x7F800000)
_TINY_BITS = np.int32(27 << 23)


@intrinsic
def as_int(typing_context, value):
    """float32 -> int32 with the same bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), codegen


@intrinsic
def as_float(typing_context, value):
    """int32 -> float32 with the same bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen


@njit(**INNER)
def absmax_bits(x):
    """Largest magnitude of float32 [n] as int32 bits; NaN and infinity come out on top."""
    top = np.int32(0)
    for i in range(x.size):
        top = max(top, np.int32(as_int(x[i]) & np.int32(0x7FFFFFFF)))
    return top


@njit(**INNER)
def first_bad(x):
    """Index of the first NaN or infinity; -1 if there is none."""
    for i in range(x.size):
        if (as_int(x[i]) & np.int32(0x7FFFFFFF)) >= _INF_BITS:
            return i
    return -1


@njit(**INNER)
def mean_magnitude(x, fold):
    """Mean |x| by the fixed fold; `fold` is float32 [p], p the next power of two of the block."""
    half = fold.size // 2
    n = x.size
    if n == fold.size:
        for i in range(half):
            fold[i] = np.abs(x[i]) * _SUM_SHIFT + np.abs(x[i + half]) * _SUM_SHIFT
    else:
        for i in range(n):
            fold[i] = np.abs(x[i]) * _SUM_SHIFT
        for i in range(n, fold.size):
            fold[i] = np.float32(0.0)
        for i in range(half):
            fold[i] += fold[i + half]
    while half > 1:
        half //= 2
        for i in range(half):
            fold[i] += fold[i + half]
    return fold[0] / (np.float32(n) * _SUM_SHIFT)


@njit(**INNER)
def bf16_up(value, cap):
    """float32 >= 0 -> int32 bf16 bits, rounded up, at most `cap`."""
    return np.int32(min(np.int32(np.uint32(as_int(value) + np.int32(0xFFFF)) >> np.uint32(16)), cap))


@njit(**INNER)
def bf16_nearest(value):
    """float32 -> int32 in [0, 65536): ties to even, saturated at the largest finite value."""
    bits = as_int(value)
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    rounded = np.int32((magnitude + np.int32(0x7FFF) + ((magnitude >> np.int32(16)) & np.int32(1))) >> np.int32(16))
    return np.int32(min(rounded, np.int32(0x7F7F)) | ((bits >> np.int32(16)) & np.int32(0x8000)))


@njit(**INNER)
def widen(bits):
    """bf16 bits (int16) -> float32."""
    return as_float(np.int32(np.int32(bits) << np.int32(16)))


@njit(**INNER)
def absmax_scale(top, level, cap):
    """Bits of the absmax scale (int32) from the absmax bits."""
    if top < _TINY_BITS:
        return np.int32(0)
    return bf16_up(as_float(top) / np.float32(level), cap)


@njit(**INNER)
def inverse(scale):
    """1 / scale; 0 for 0."""
    return _ONE / scale if scale != np.float32(0.0) else np.float32(0.0)


@njit(**INNER)
def scale_of(x, top, bits, stochastic, fold):
    """Scale bits (int32) of one block for `bits`-bit codes."""
    if bits == 8:
        return absmax_scale(top, 127, np.int32(0x7C01))
    if bits == 4:
        return absmax_scale(top, 7, np.int32(0x7E12))
    if stochastic:
        return absmax_scale(top, 3, np.int32(0x7EAA))
    if top < _TINY_BITS:
        return np.int32(0)
    return bf16_up(mean_magnitude(x, fold) * _TWO_BIT_STEP, np.int32(0x7EAA))


@njit(**INNER)
def round_nearest(x, inv, bits, codes):
    """Codes (int8 [n]) of one block: integer levels, or 0 ... 3 for 2 bits."""
    if bits == 2:
        for i in range(x.size):
            t = (x[i] * inv) * _HALF + np.float32(1.5)
            c = np.int32(as_int(t + _MAGIC) - np.int32(0x4B400000))
            codes[i] = np.int8(min(max(c, np.int32(0)), np.int32(3)))
    else:
        # |x| <= q * scale, and the cap costs under half a level, so no clamp; the low byte is the code.
        for i in range(x.size):
            codes[i] = np.int8(as_int(x[i] * inv + _MAGIC))


@njit(**INNER)
def round_stochastic(x, inv, bits, codes, random):
    """As `round_nearest`, with noise from `random` (uint16 [>= n])."""
    low, high = np.int32(0), np.int32(3)
    if bits != 2:
        high = np.int32(127) if bits == 8 else np.int32(7)
        low = -high
    gain = _HALF if bits == 2 else _ONE
    shift = np.float32(1.5) if bits == 2 else np.float32(0.0)
    for i in range(x.size):
        noise = np.float32(np.int32(np.int32(2) * np.int32(random[i]) - np.int32(65535))) * _NOISE_STEP
        t = (x[i] * inv) * gain + shift + noise
        c = np.int32(as_int(t + _MAGIC) - np.int32(0x4B400000))
        codes[i] = np.int8(min(max(c, low), high))


@njit(**INNER)
def pack(codes, n, bits, packed):
    """Pack `n` codes (int8 [>= n], length a multiple of 16) into uint8; rest bits of the last byte are 0."""
    if bits == 4:
        if n % 2:
            codes[n] = np.int8(0)
        pairs = codes.view(np.uint16)
        for i in range(packed.size):
            v = np.uint32(pairs[i])
            packed[i] = np.uint8((v & np.uint32(0xF)) | ((v >> np.uint32(4)) & np.uint32(0xF0)))
    else:
        for i in range(n, 4 * packed.size):
            codes[i] = np.int8(0)
        quads = codes.view(np.uint32)
        for i in range(packed.size):
            v = np.uint32(quads[i])
            packed[i] = np.uint8(v | (v >> np.uint32(6)) | (v >> np.uint32(12)) | (v >> np.uint32(18)))


@njit(**INNER)
def unpack(packed, bits, codes):
    """Levels (int8, length a multiple of 16) from packed bytes; 2-bit codes become -3, -1, 1, 3."""
    if bits == 4:
        pairs = codes.view(np.uint16)
        for i in range(packed.size):
            v = np.uint32(packed[i])
            v = (v & np.uint32(0xF)) | ((v & np.uint32(0xF0)) << np.uint32(4))
            # Sign of each nibble: flip bit 3, then subtract 8 from each byte without a borrow across bytes.
            v = (v ^ np.uint32(0x0808)) + np.uint32(0x7878)
            pairs[i] = np.uint16(v ^ np.uint32(0x8080))
    else:
        quads = codes.view(np.uint32)
        for i in range(packed.size):
            v = np.uint32(packed[i])
            v = (v | (v << np.uint32(6)) | (v << np.uint32(12)) | (v << np.uint32(18))) & np.uint32(0x03030303)
            # 2 c - 3 per byte: 2 c + 0x7D stays under 0x84, so bytes do not carry; then the bias 0x80 goes.
            quads[i] = np.uint32(((v << np.uint32(1)) + np.uint32(0x7D7D7D7D)) ^ np.uint32(0x80808080))


@njit(**INNER)
def round_and_subtract(d, inv, scale, codes, error):
    """`round_nearest` for 8 and 4 bits, and error = d - code * scale, in one loop."""
    for i in range(d.size):
        shifted = d[i] * inv + _MAGIC
        codes[i] = np.int8(as_int(shifted))
        error[i] = d[i] - (shifted - _MAGIC) * scale


@njit(**INNER)
def round_block(x, scale, bits, stochastic, seed, offset, codes, random):
    """Codes (int8) of one block under its scale (float32)."""
    if stochastic:
        fill_random16(random, offset, seed)
        round_stochastic(x, inverse(scale), bits, codes, random)
    else:
        round_nearest(x, inverse(scale), bits, codes)


@njit(**INNER)
def encode_block(x, bits, stochastic, seed, offset, packed, codes, random, fold):
    """Quantise one block `x` (float32 [n]) into `packed`; returns the scale bits, or -1 if `x` is not finite."""
    top = absmax_bits(x)
    if top >= _INF_BITS:
        return np.int32(-1)
    scale_bits = scale_of(x, top, bits, stochastic, fold)
    scale = widen(scale_bits)
    if bits == 8:
        round_block(x, scale, bits, stochastic, seed, offset, packed.view(np.int8), random)
    else:
        round_block(x, scale, bits, stochastic, seed, offset, codes, random)
        pack(codes, x.size, bits, packed)
    return scale_bits


@njit(**INNER)
def encode_and_subtract(d, bits, stochastic, seed, offset, packed, codes, random, fold, error):
    """`encode_block`, and error (float32 [n], no alias of `d`) = d - what the codes decode to."""
    top = absmax_bits(d)
    if top >= _INF_BITS:
        return np.int32(-1)
    scale_bits = scale_of(d, top, bits, stochastic, fold)
    scale = widen(scale_bits)
    if bits == 8 and not stochastic:
        round_and_subtract(d, inverse(scale), scale, packed.view(np.int8), error)
    elif bits == 4 and not stochastic:
        round_and_subtract(d, inverse(scale), scale, codes, error)
    else:
        round_block(d, scale, bits, stochastic, seed, offset, codes, random)
        gain, shift = (np.int32(2), np.int32(3)) if bits == 2 else (np.int32(1), np.int32(0))
        for i in range(d.size):
            error[i] = d[i] - np.float32(np.int32(gain * np.int32(codes[i]) - shift)) * scale
        if bits == 8:
            for i in range(d.size):
                packed[i] = np.uint8(codes[i])
    if bits != 8:
        pack(codes, d.size, bits, packed)
    return scale_bits
