"""The formulas of the specification as plain functions on whole blocks, for `torch.compile`; outputs are handed in.

Written as one would for the compiler: no checks, no short blocks, block 256. All but two write the bytes of the
reference: sign scales and 2-bit scales are a plain mean here, where the specification folds in a fixed order.
"""

from __future__ import annotations

import torch
from lowcomm_kernels.bits import LEVELS, TWO_BIT_STEP, absmax_scale, bf16_nearest, bf16_up, inverse, to_int16
from lowcomm_kernels.bits import widen as widen_bits
from torch import Tensor

BLOCK = 256
CHUNK, KEEP = 4096, 64


def _levels(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 [b, 256] -> codes fp32 [b, 256], scale bits int16 [b], what the codes decode to, fp32 [b, 256]."""
    if bits == 2:
        found = to_int16(bf16_up(blocks.abs().mean(dim=1) * TWO_BIT_STEP, 0x7EAA))
    else:
        found = to_int16(absmax_scale(blocks.abs().amax(dim=1), LEVELS[bits]))
    scale = widen_bits(found)
    t = blocks * inverse(scale)[:, None]
    if bits == 2:
        code = torch.round(t * 0.5 + 1.5).clamp(0, 3)
        return code, found, (2 * code - 3) * scale[:, None]
    code = torch.round(t).clamp(-LEVELS[bits], LEVELS[bits])
    return code, found, code * scale[:, None]


def _packed(code: Tensor, bits: int) -> Tensor:
    """fp32 codes -> uint8 [n * bits / 8]."""
    if bits == 8:
        return code.to(torch.int8).view(torch.uint8).view(-1)
    parts = (code.to(torch.int32) & ((1 << bits) - 1)).view(-1, 8 // bits)
    byte = parts[:, 0]
    for i in range(1, 8 // bits):
        byte = byte | parts[:, i] << (bits * i)
    return byte.to(torch.uint8)


def _unpacked(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """uint8 [n * bits / 8], int16 [n / 256] -> fp32 [n]."""
    if bits == 8:
        level = codes.view(torch.int8).view(-1, BLOCK)
        return (level.to(torch.float32) * widen_bits(scales)[:, None]).view(-1)
    wide = codes.to(torch.int32)
    code = torch.stack([(wide >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], dim=1).view(-1, BLOCK)
    half = 1 << (bits - 1)
    level = 2 * code - 3 if bits == 2 else (code ^ half) - half
    return (level.to(torch.float32) * widen_bits(scales)[:, None]).view(-1)


def quantise(x: Tensor, codes: Tensor, scales: Tensor, bits: int) -> None:
    code, scale, _ = _levels(x.view(-1, BLOCK), bits)
    codes.copy_(_packed(code, bits))
    scales.copy_(scale)


def delta_quantise(
    old: Tensor, new: Tensor, error: Tensor, beta: float, codes: Tensor, scales: Tensor, bits: int
) -> None:
    d = (old - new) + beta * error
    code, scale, value = _levels(d.view(-1, BLOCK), bits)
    codes.copy_(_packed(code, bits))
    scales.copy_(scale)
    error.copy_(d - value.view(-1))


def dequantise(codes: Tensor, scales: Tensor, out: Tensor, bits: int) -> None:
    out.copy_(_unpacked(codes, scales, bits))


def dequantise_accumulate(codes: Tensor, scales: Tensor, acc: Tensor, weight: float, bits: int) -> None:
    acc.add_(weight * _unpacked(codes, scales, bits))


def reduce_to_float(codes: Tensor, scales: Tensor, weight: float, out: Tensor, bits: int) -> None:
    """`codes` [peers, ...]: the weighted sum in the order of the rows."""
    total = weight * _unpacked(codes[0], scales[0], bits)
    for row in range(1, codes.shape[0]):
        total = total + weight * _unpacked(codes[row], scales[row], bits)
    out.copy_(total)


def sign_pack(x: Tensor, words: Tensor, scales: Tensor) -> None:
    scales.copy_(to_int16(bf16_nearest(x.view(-1, BLOCK).abs().mean(dim=1))))
    words.copy_(_packed((x >= 0).to(torch.float32), 1))


def sign_accumulate(words: Tensor, scales: Tensor, acc: Tensor, weight: float) -> None:
    wide = words.to(torch.int32)
    bit = torch.stack([(wide >> shift) & 1 for shift in range(8)], dim=1).view(-1, BLOCK)
    scale = weight * widen_bits(scales)[:, None]
    acc.add_(torch.where(bit > 0, scale, -scale).view(-1))


def encode_bf16(x: Tensor, out: Tensor) -> None:
    out.copy_(x.to(torch.bfloat16).view(torch.int16))


def decode_bf16(bits: Tensor, out: Tensor) -> None:
    out.copy_(bits.view(torch.bfloat16).to(torch.float32))


def topk(x: Tensor, indices: Tensor, values: Tensor) -> None:
    rows = x.view(-1, CHUNK)
    chosen = rows.abs().topk(KEEP, dim=1).indices.sort(dim=1).values
    indices.copy_(chosen.reshape(-1).to(torch.uint16))
    values.copy_(rows.gather(1, chosen).reshape(-1))


def sparse_decode(indices: Tensor, values: Tensor, weight: float, out: Tensor) -> None:
    """`indices` uint16 and `values` fp32, both [peers, kept]; `values` are decoded already."""
    base = (torch.arange(indices.shape[1], device=out.device) // KEEP) * CHUNK
    out.zero_()
    for row in range(indices.shape[0]):
        out.index_add_(0, base + indices[row].to(torch.int64), values[row] * weight)


def dct(x: Tensor, table: Tensor, out: Tensor) -> None:
    """fp32 [side, side] -> coefficients [tiles, 64, 64] by two matrix products a tile; sums in another order."""
    down, across = x.shape[0] // 64, x.shape[1] // 64
    tiles = x.view(down, 64, across, 64).transpose(1, 2).reshape(-1, 64, 64)
    out.copy_((table @ tiles @ table.T).view(-1))
