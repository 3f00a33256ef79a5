"""Triton form of the value coding; the specification is in `values.py`.

The functions work on the kept entries of one chunk, `int32` or fp32 [KEEP], of which the first k count.
"""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks, chunk_code_bytes

_PER_127 = tl.constexpr(0.007874015718698502)  # float32(1 / 127), exactly


@triton.jit
def _scale_word(low, high, top):
    length = top * 0
    for bit in tl.static_range(24):
        length += ((high >> bit) > 0).to(tl.int32)
    drop = tl.maximum(length - 4, 0)
    mantissa = (high + ((1 << drop) // 2)) >> drop
    over = mantissa == 16
    mantissa = tl.where(over, 8, mantissa)
    length = tl.where(over, length + 1, length)
    exponent = top + length - 24
    over = exponent > 254
    mantissa = tl.where(over, 15, mantissa)
    length = tl.where(over, length - 1, length)
    exponent = tl.minimum(exponent, 254)
    unit = tl.maximum(mantissa << tl.maximum(length - 4, 0), 1)
    ratio = tl.minimum((low * 32 + unit // 2) // unit, 31)
    word = (exponent << 8) | ((mantissa - 8) << 5) | ratio
    return tl.where(exponent >= 27, word, 0)


@triton.jit
def _encode2(v, valid, k):
    raw = v.to(tl.int32, bitcast=True)
    bits = tl.where(valid, raw & 0x7FFFFFFF, 0)
    exponent = bits >> 23
    significand = (bits & 0x7FFFFF) | tl.where(exponent > 0, 0x800000, 0)
    exponent = tl.maximum(exponent, 1)
    top = tl.max(exponent, axis=0)
    q = (significand >> tl.minimum(top - exponent, 31)).to(tl.int64)
    total = tl.sum(q, axis=0)
    twice = 2 * (total // k)
    low = total
    high = total
    for step in tl.static_range(5):
        if step > 0:
            twice = low + high
        member = valid & (2 * q >= twice)
        count = tl.sum(member.to(tl.int32), axis=0)
        above = tl.sum(tl.where(member, q, 0), axis=0)
        high = above // count
        low = (total - above) // tl.maximum(k - count, 1)
    word = _scale_word(low.to(tl.int32), high.to(tl.int32), top)
    two = (raw < 0).to(tl.int32) | ((2 * q >= twice).to(tl.int32) << 1)
    return tl.where(valid & (word > 0), two, 0), word


@triton.jit
def _encode8(v, valid):
    bits = tl.where(valid, v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
    top = tl.max(bits, axis=0)
    step = (top.to(tl.float32, bitcast=True) * _PER_127).to(tl.int32, bitcast=True)
    word = tl.where(top >= (27 << 23), tl.minimum((step + 0xFFFF) >> 16, 0x7C01), 0)
    scale = tl.where(word > 0, word << 16, 0x3F800000).to(tl.float32, bitcast=True)
    y = tl.div_rn(v, tl.zeros_like(v) + scale)
    q = (y + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    q = tl.minimum(tl.maximum(q, -127), 127)
    return tl.where(valid & (word > 0), q & 0xFF, 0), word


@triton.jit
def encode_kept(v, k, BITS: tl.constexpr, KEEP: tl.constexpr):  # noqa: N803
    """Codes (int32 [KEEP]: 2, 8 or 16 bits each) and scale word of fp32 v."""
    valid = tl.arange(0, KEEP) < k
    if BITS == 2:
        code, word = _encode2(v, valid, k)
    elif BITS == 8:
        code, word = _encode8(v, valid)
    else:
        raw = v.to(tl.int32, bitcast=True)
        bits = raw & 0x7FFFFFFF
        word = tl.max(bits, axis=0) * 0
        code = tl.minimum((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7F7F) | ((raw >> 16) & 0x8000)
    return code, word


@triton.jit
def decode_kept(code, word, BITS: tl.constexpr):  # noqa: N803
    """fp32 of codes and scale word, and whether each is one that an encoder writes."""
    if BITS == 2:
        exponent = word >> 8
        high_bits = tl.where(exponent >= 27, (exponent << 23) | (((word >> 5) & 7) << 20), 0)
        high = high_bits.to(tl.float32, bitcast=True)
        low = high * ((word & 31).to(tl.float32) * 0.03125)
        level = tl.where(code >= 2, high, low).to(tl.int32, bitcast=True)
        value = (level ^ ((code & 1) << 31)).to(tl.float32, bitcast=True)
        good = (code >= 0) & (exponent < 255)
    elif BITS == 8:
        signed = tl.where(code > 127, code - 256, code).to(tl.float32)
        value = signed * (word << 16).to(tl.float32, bitcast=True)
        good = (code >= 0) & (word <= 0x7C01)
    else:
        value = (code << 16).to(tl.float32, bitcast=True)
        good = (code & 0x7F80) != 0x7F80
    return value, good


@triton.jit
def store_codes(codes, code, k, BITS: tl.constexpr, KEEP: tl.constexpr):  # noqa: N803
    entry = tl.arange(0, KEEP)
    if BITS == 2:
        shift = 2 * tl.arange(0, 4)
        packed = tl.sum(tl.reshape(code, (KEEP // 4, 4)) << shift[None, :], axis=1)
        byte = tl.arange(0, KEEP // 4)
        tl.store(codes + byte, packed.to(tl.uint8), mask=byte < (k + 3) // 4)
    elif BITS == 8:
        tl.store(codes + entry, code.to(tl.uint8), mask=entry < k)
    else:
        tl.store(codes + 2 * entry, (code & 0xFF).to(tl.uint8), mask=entry < k)
        tl.store(codes + 2 * entry + 1, (code >> 8).to(tl.uint8), mask=entry < k)


@triton.jit
def load_codes(codes, k, BITS: tl.constexpr, KEEP: tl.constexpr):  # noqa: N803
    entry = tl.arange(0, KEEP)
    inside = entry < k
    if BITS == 2:
        byte = tl.load(codes + entry // 4, mask=inside, other=0).to(tl.int32)
        code = (byte >> (2 * (entry % 4))) & 3
    elif BITS == 8:
        code = tl.load(codes + entry, mask=inside, other=0).to(tl.int32)
    else:
        code = tl.load(codes + 2 * entry, mask=inside, other=0).to(tl.int32)
        code |= tl.load(codes + 2 * entry + 1, mask=inside, other=0).to(tl.int32) << 8
    return code


@triton.jit
def _encode_kernel(
    values, codes, scales, bad, full, k, tail_k, size, BITS: tl.constexpr, KEEP: tl.constexpr  # noqa: N803
):  # fmt: skip
    c = tl.program_id(0).to(tl.int64)
    keep = tl.where(c < full, k, tail_k)
    entry = tl.arange(0, KEEP)
    v = tl.load(values + c * k + entry, mask=entry < keep, other=0.0)
    top = tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    code, word = encode_kept(v, keep, BITS, KEEP)
    store_codes(codes + c * size, code, keep, BITS, KEEP)
    if BITS != 16:
        tl.store(scales + c, word.to(tl.uint16))
    tl.store(bad + c, (top >= 0x7F800000).to(tl.int32))


@triton.jit
def _decode_kernel(
    codes, scales, values, bad, full, k, tail_k, size, BITS: tl.constexpr, KEEP: tl.constexpr  # noqa: N803
):  # fmt: skip
    c = tl.program_id(0).to(tl.int64)
    keep = tl.where(c < full, k, tail_k)
    entry = tl.arange(0, KEEP)
    code = load_codes(codes + c * size, keep, BITS, KEEP)
    word = tl.load(scales + c).to(tl.int32) if BITS != 16 else 0
    v, good = decode_kept(code, word, BITS)
    tl.store(values + c * k + entry, v, mask=entry < keep)
    wrong = tl.where(entry < keep, (good == 0).to(tl.int32), 0)
    tl.store(bad + c, tl.max(wrong, axis=0))


def keep_block(chunks: Chunks) -> int:
    """Power of two that holds the kept entries of a chunk; at least 8, for whole bytes and pairs."""
    return max(8, triton.next_power_of_2(chunks.k))


def encode(values: Tensor, chunks: Chunks, bits: int, codes: Tensor, scales: Tensor) -> bool:
    """Fill `codes` and `scales`; False if a value is not finite."""
    bad = torch.zeros(chunks.count, dtype=torch.int32, device=values.device)
    if chunks.count:
        shape = (chunks.full, chunks.k, chunks.tail_k, chunk_code_bytes(chunks.k, bits))
        _encode_kernel[(chunks.count,)](
            values, codes, scales, bad, *shape, bits, keep_block(chunks), num_warps=1, enable_fp_fusion=False
        )
    return not bool(bad.any())


def decode(codes: Tensor, scales: Tensor, chunks: Chunks, bits: int, values: Tensor) -> bool:
    """Fill `values`; False if a code or scale is one that no encoder writes."""
    bad = torch.zeros(chunks.count, dtype=torch.int32, device=codes.device)
    if chunks.count:
        shape = (chunks.full, chunks.k, chunks.tail_k, chunk_code_bytes(chunks.k, bits))
        _decode_kernel[(chunks.count,)](
            codes, scales, values, bad, *shape, bits, keep_block(chunks), num_warps=1, enable_fp_fusion=False
        )
    return not bool(bad.any())
