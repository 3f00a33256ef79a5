"""Eager torch: the specification in code. Slow (about 20 passes over memory) and readable."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import (
    LEVELS,
    NOISE_STEP,
    SCALE_CAPS,
    TINY_BITS,
    TWO_BIT_STEP,
    absmax,
    absmax_scale,
    as_bits,
    bf16_up,
    check_finite,
    inverse,
    mean_magnitude,
    packed_bytes,
    to_blocks,
    to_int16,
    widen,
)
from lowcomm_kernels.philox import random16


def scale_bits(blocks: Tensor, numel: int, bits: int, stochastic: bool) -> Tensor:
    """fp32 [b, block] -> int32 [b]: bf16 bits of the scales."""
    largest = absmax(blocks)
    if bits == 2 and not stochastic:
        step = bf16_up(mean_magnitude(blocks, numel) * TWO_BIT_STEP, SCALE_CAPS[3])
        return torch.where(as_bits(largest) < TINY_BITS, 0, step)
    return absmax_scale(largest, LEVELS[bits])


def round_codes(blocks: Tensor, scale: Tensor, bits: int, noise: Tensor | None) -> Tensor:
    """fp32 [b, block] -> int32 [b, block]: integer levels, or 0 ... 3 for 2 bits."""
    t = blocks * inverse(scale)[:, None]
    if bits == 2:
        t = t * 0.5 + 1.5
    if noise is not None:
        t = t + noise
    low, high = (0, 3) if bits == 2 else (-LEVELS[bits], LEVELS[bits])
    return torch.round(t).clamp(low, high).to(torch.int32)


def encode(x: Tensor, bits: int, block: int, stochastic: bool, seed: int, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 [n] -> codes int32 [n], scale bits int32 [b], decoded value fp32 [n]."""
    blocks = to_blocks(x, block)
    found = scale_bits(blocks, x.numel(), bits, stochastic)
    scale = widen(to_int16(found))
    noise = None
    if stochastic:
        integers = 2 * random16(offset, blocks.numel(), seed, x.device) - 65535
        noise = integers.to(torch.float32).view(blocks.shape) * NOISE_STEP
    codes = round_codes(blocks, scale, bits, noise)
    levels = 2 * codes - 3 if bits == 2 else codes
    value = levels.to(torch.float32) * scale[:, None]
    return codes.reshape(-1)[: x.numel()], found, value.reshape(-1)[: x.numel()]


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """int32 [n] codes -> uint8 [ceil(n * bits / 8)], first code in the low bits, unused bits 0."""
    per_byte = 8 // bits
    padded = torch.zeros(out.numel() * per_byte, dtype=torch.int32, device=codes.device)
    padded[: codes.numel()] = codes & ((1 << bits) - 1)
    shifts = torch.arange(per_byte, dtype=torch.int32, device=codes.device) * bits
    out.copy_((padded.view(-1, per_byte) << shifts).sum(dim=1).to(torch.uint8))


def unpack(packed: Tensor, bits: int, numel: int) -> Tensor:
    """uint8 -> int32 [numel]: the levels that the codes stand for (2 bits: -3, -1, 1, 3)."""
    shifts = torch.arange(8 // bits, dtype=torch.int32, device=packed.device) * bits
    codes = ((packed[: packed_bytes(numel, bits)].to(torch.int32)[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)
    codes = codes[:numel]
    if bits == 2:
        return 2 * codes - 3
    half = 1 << (bits - 1)
    return (codes ^ half) - half


def quantise(
    x: Tensor, codes: Tensor, scales: Tensor, *, bits: int, block: int, stochastic: bool, seed: int, offset: int
) -> None:
    """Fill `codes` and `scales`. Raises NonFiniteError."""
    check_finite(x)
    found, scale, _ = encode(x, bits, block, stochastic, seed, offset)
    pack(found, bits, codes)
    scales.copy_(to_int16(scale))


def delta_quantise(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    error_out: Tensor,
    codes: Tensor,
    scales: Tensor,
    *,
    beta: float,
    bits: int,
    block: int,
    stochastic: bool,
    seed: int,
    offset: int,
) -> None:
    """Fill `codes`, `scales` and `error_out` (may be `error`). Raises NonFiniteError."""
    d = (old if new is None else old - new) + torch.full_like(error, beta) * error
    check_finite(d)
    found, scale, value = encode(d, bits, block, stochastic, seed, offset)
    pack(found, bits, codes)
    scales.copy_(to_int16(scale))
    torch.sub(d, value, out=error_out)
