"""Eager torch: the specification in code."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import (
    absmax,
    absmax_scale,
    as_bits,
    bf16_nearest,
    check_finite,
    inverse,
    to_blocks,
    to_int16,
    widen,
)


def _encode(y: Tensor) -> Tensor:
    """fp32, |y| < 2**10 -> int32 e4m3fn codes."""
    sign = (as_bits(y) >> 24) & 0x80
    magnitude = as_bits(y) & 0x7FFFFFFF
    normal = (((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960).clamp(max=0x7E)
    small = torch.round(y.abs() * 512.0).to(torch.int32)
    return torch.where(magnitude >= 121 << 23, normal, small) | sign


def _decode(codes: Tensor) -> Tensor:
    """uint8 -> fp32."""
    c = codes.to(torch.int32)
    low = c & 0x7F
    normal = ((low << 20) + (120 << 23)).view(torch.float32)
    value = torch.where(low >= 8, normal, low.to(torch.float32) * 2.0**-9)
    signed = (as_bits(value) | ((c & 0x80) << 24)).view(torch.float32)
    return torch.where(low == 0x7F, torch.nan, signed)


def encode_fp8(x: Tensor, codes: Tensor, scales: Tensor, *, block: int) -> None:
    """Fill `codes` and `scales`. Raises NonFiniteError."""
    check_finite(x)
    blocks = to_blocks(x, block)
    found = to_int16(absmax_scale(absmax(blocks), 448))
    scales.copy_(found)
    y = blocks * inverse(widen(found))[:, None]
    codes.copy_(_encode(y).reshape(-1)[: x.numel()].to(torch.uint8))


def decode_fp8(codes: Tensor, scales: Tensor, out: Tensor, *, block: int) -> None:
    """Fill `out`."""
    out.copy_(_decode(codes) * widen(scales).repeat_interleave(block)[: out.numel()])


def encode_bf16(x: Tensor, out: Tensor) -> None:
    """Fill `out`. Raises NonFiniteError."""
    check_finite(x)
    out.copy_(to_int16(bf16_nearest(x)))


def decode_bf16(bits: Tensor, out: Tensor) -> None:
    """Fill `out`."""
    out.copy_(widen(bits))
