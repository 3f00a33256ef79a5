"""Eager torch form of the value coding; the specification is in `values.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks, chunk_code_bytes

SCALE8_MAX = 0x7C01
"""Largest bfloat16 that times 127 is still finite."""
TINY_EXPONENT = 27
"""Exponent field of 2**-100."""
LLOYD_PASSES = 5
_INFINITY = 0x7F800000
_MAGIC = 12582912.0


def magnitude_bits(x: Tensor) -> Tensor:
    """int32 bits of |x| (fp32): they order as the magnitudes do, NaN and infinity last."""
    return x.contiguous().view(torch.int32) & 0x7FFFFFFF


def encode(values: Tensor, chunks: Chunks, bits: int, codes: Tensor, scales: Tensor) -> bool:
    """Fill `codes` and `scales`; False if a value is not finite."""
    if chunks.kept and int(magnitude_bits(values).max()) >= _INFINITY:
        return False
    value_at, code_at = 0, 0
    for first, count, _, k in chunks.parts():
        v = values[value_at : value_at + count * k].view(count, k)
        code, scale = encode_rows(v, bits)
        size = chunk_code_bytes(k, bits)
        codes[code_at : code_at + count * size] = code.reshape(-1)
        if bits != 16:
            scales[first : first + count] = scale.to(torch.uint16)
        value_at, code_at = value_at + count * k, code_at + count * size
    return True


def encode_rows(v: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes (uint8 [rows, bytes]) and scale words (int64 [rows]) of fp32 [rows, k]."""
    if bits == 2:
        return _encode2(v)
    if bits == 8:
        return _encode8(v)
    raw = magnitude_bits(v).to(torch.int64)
    word = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).clamp(max=0x7F7F)
    word |= (v.contiguous().view(torch.int32).to(torch.int64) >> 16) & 0x8000
    pair = torch.stack((word & 0xFF, word >> 8), dim=2)
    return pair.reshape(v.shape[0], -1).to(torch.uint8), word[:, 0]


def _encode8(v: Tensor) -> tuple[Tensor, Tensor]:
    top = magnitude_bits(v).amax(dim=1)
    step = top.view(torch.float32) * torch.tensor(1 / 127, dtype=torch.float32)
    word = ((step.view(torch.int32).to(torch.int64) + 0xFFFF) >> 16).clamp(max=SCALE8_MAX)
    word = torch.where(top >= TINY_EXPONENT << 23, word, 0)
    scale = (word << 16).to(torch.int32).view(torch.float32)
    y = v / torch.where(word > 0, scale, 1.0)[:, None]
    q = (y + _MAGIC).view(torch.int32) - 0x4B400000
    q = torch.where(word[:, None] > 0, q.clamp(-127, 127), 0)
    return (q & 0xFF).to(torch.uint8), word


def _encode2(v: Tensor) -> tuple[Tensor, Tensor]:
    raw = magnitude_bits(v).to(torch.int64)
    exponent = raw >> 23
    significand = (raw & 0x7FFFFF) | torch.where(exponent > 0, 0x800000, 0)
    exponent = exponent.clamp(min=1)
    top = exponent.amax(dim=1)
    q = significand >> (top[:, None] - exponent).clamp(max=31)
    total, k = q.sum(dim=1), v.shape[1]
    twice = 2 * (total // k)
    low = high = total
    member = q >= 0
    for step in range(LLOYD_PASSES):
        if step:
            twice = low + high
        member = 2 * q >= twice[:, None]
        count, above = member.sum(dim=1), (q * member).sum(dim=1)
        high = above // count
        low = (total - above) // (k - count).clamp(min=1)
    word = _scale_word(low, high, top)
    code = (v.contiguous().view(torch.int32) < 0).to(torch.int64) | (member.to(torch.int64) << 1)
    code = torch.where(word[:, None] > 0, code, 0)
    code = torch.nn.functional.pad(code, (0, -k % 4)).view(v.shape[0], -1, 4)
    packed = code[:, :, 0] | code[:, :, 1] << 2 | code[:, :, 2] << 4 | code[:, :, 3] << 6
    return packed.to(torch.uint8), word


def _scale_word(low: Tensor, high: Tensor, top: Tensor) -> Tensor:
    """The scale word of levels `low` and `high` in units of 2**(top - 150); all int64 [rows]."""
    length = sum((high >= 1 << bit).to(torch.int64) for bit in range(24))
    length = torch.as_tensor(length)
    drop = (length - 4).clamp(min=0)
    mantissa = (high + (1 << drop) // 2) >> drop
    over = mantissa == 16
    mantissa, length = torch.where(over, 8, mantissa), length + over.to(torch.int64)
    exponent = top + length - 24
    over = exponent > 254
    mantissa, length, exponent = torch.where(over, 15, mantissa), length - over.to(torch.int64), exponent.clamp(max=254)
    unit = (mantissa << (length - 4).clamp(min=0)).clamp(min=1)
    ratio = ((low * 32 + unit // 2) // unit).clamp(max=31)
    return torch.where(exponent >= TINY_EXPONENT, exponent << 8 | (mantissa - 8) << 5 | ratio, 0)


def decode(codes: Tensor, scales: Tensor, chunks: Chunks, bits: int, values: Tensor) -> bool:
    """Fill `values`; False if a code or scale is one that no encoder writes."""
    value_at, code_at, good = 0, 0, True
    for first, count, _, k in chunks.parts():
        size = chunk_code_bytes(k, bits)
        code = codes[code_at : code_at + count * size].view(count, size).to(torch.int64)
        word = scales[first : first + count].to(torch.int64) if bits != 16 else code[:, 0]
        found, ok = decode_rows(code, word, bits, k)
        values[value_at : value_at + count * k] = found.reshape(-1)
        value_at, code_at, good = value_at + count * k, code_at + count * size, good and ok
    return good


def decode_rows(code: Tensor, word: Tensor, bits: int, k: int) -> tuple[Tensor, bool]:
    """fp32 [rows, k] of codes (int64 [rows, bytes]) and scale words (int64 [rows]); False if malformed."""
    if bits == 16:
        raw = code[:, 0::2] | code[:, 1::2] << 8
        return _from_bits(raw << 16), bool(((raw & 0x7F80) != 0x7F80).all())
    if bits == 8:
        q = torch.where(code > 127, code - 256, code).to(torch.float32)
        return q * _from_bits(word << 16)[:, None], bool((word <= SCALE8_MAX).all())
    exponent = word >> 8
    high = _from_bits(torch.where(exponent >= TINY_EXPONENT, exponent << 23 | ((word >> 5) & 7) << 20, 0))
    low = high * ((word & 31).to(torch.float32) * 0.03125)
    two = torch.stack([(code >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2).reshape(len(word), -1)[:, :k]
    level = torch.where(two >= 2, high[:, None], low[:, None])
    return torch.where((two & 1) > 0, -level, level), bool((exponent < 255).all())


def _from_bits(raw: Tensor) -> Tensor:
    """fp32 of 32-bit patterns held in int64."""
    return torch.where(raw >= 1 << 31, raw - (1 << 32), raw).to(torch.int32).view(torch.float32)
