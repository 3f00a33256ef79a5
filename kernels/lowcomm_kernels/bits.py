"""The formulas that every block format shares, in eager torch; all of fp32, each operation rounded on its own.

A block is `block` neighbouring elements (a multiple of 16, at most 4096; the last may be short). Its scale is
bf16, held as its 16 bits in an int16 tensor, so `scales.view(torch.bfloat16)` reads it.

Scale of an absmax format with largest level `q`:
    t = absmax / q                               one true division
    bits = (bits32(t) + 0xFFFF) >> 16            bf16 rounded up, so that |x| <= q * scale
    bits = min(bits, cap)                        cap: the largest bf16 whose q-fold is finite in fp32
    bits = 0 if absmax < 2**-100                 no path then ever multiplies by a subnormal's reciprocal
`inverse` is 1 / scale (true division), and 0 for scale 0. Scale times level is exact in fp32 for all formats
(8 + 7 mantissa bits at most), so a fused multiply-add could not change a decoded value.

Sum of |x| in a block: |x| * 2**-12 (no overflow), zeros up to the next power of two `p`, then halves are folded:
`v[i] + v[i + p/2]`, `v[i] + v[i + p/4]`, ... down to one. The mean is `sum / (count * 2**-12)`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowcomm_kernels.errors import NonFiniteError

INF_BITS = 0x7F800000
TINY_BITS = 27 << 23
"""2**-100: a block whose largest magnitude is below it has scale 0."""
BF16_MAX_BITS = 0x7F7F
BF16_INF_BITS = 0x7F80
MAX_BLOCK = 4096
SUM_SHIFT = 2.0**-12
NOISE_STEP = 2.0**-17
TWO_BIT_STEP = 0.625
"""2-bit, nearest: step over mean |x|. The best uniform 4-level step for a Gaussian is 0.498 sigma = 0.624 mean."""

LEVELS = {8: 127, 4: 7, 2: 3}
"""Largest level by bits per code."""
SCALE_CAPS = {127: 0x7C01, 7: 0x7E12, 3: 0x7EAA, 448: 0x7B12}
"""Largest level -> bits of the largest bf16 whose product with the level is finite in fp32."""


def check_block(block: int) -> None:
    """Raise ValueError unless `block` is a multiple of 16 in [16, 4096]."""
    if block % 16 or not 16 <= block <= MAX_BLOCK:
        raise ValueError(f"block={block}: expected a multiple of 16 in [16, {MAX_BLOCK}]; 256 suits most tensors")


def check_bits(bits: int) -> None:
    """Raise ValueError unless `bits` is 8, 4 or 2."""
    if bits not in LEVELS:
        raise ValueError(f"bits={bits}: expected 8, 4 or 2; for 1 bit use lowcomm_kernels.sign")


def packed_bytes(numel: int, bits: int) -> int:
    """Bytes of `numel` codes of `bits` bits, packed without gaps."""
    return -(-numel * bits // 8)


def block_count(numel: int, block: int) -> int:
    """Blocks of `numel` elements; the last may be short."""
    return -(-numel // block)


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()


def as_bits(x: Tensor) -> Tensor:
    """fp32 -> int32 with the same bits."""
    return x.view(torch.int32)


def to_blocks(x: Tensor, block: int) -> Tensor:
    """fp32 [n] -> fp32 [blocks, block], a copy, zeros after the end."""
    blocks = block_count(x.numel(), block)
    padded = torch.zeros(blocks * block, dtype=x.dtype, device=x.device)
    padded[: x.numel()] = x
    return padded.view(blocks, block)


def check_finite(x: Tensor) -> None:
    """Raise NonFiniteError with the first NaN or infinity of an fp32 [n] tensor."""
    bad = (as_bits(x) & 0x7FFFFFFF) >= INF_BITS
    if bad.any():
        raise NonFiniteError(int(bad.to(torch.uint8).argmax()))


def check_scales(scales: Tensor, block: int) -> None:
    """Raise NonFiniteError if a scale (int16, any shape) is NaN, infinite or negative.

    The index is that of the first element of the scale's block, in its own row.
    """
    if scales.numel() == 0:
        return
    # As an unsigned number, one comparison also catches the sign bit.
    if scales.device.type == "cpu" and scales.numpy().view(np.uint16).max() < BF16_INF_BITS:
        return
    bad = (scales.to(torch.int32) & 0xFFFF) >= BF16_INF_BITS
    if bad.any():
        first = int(bad.reshape(-1).to(torch.uint8).argmax())
        raise NonFiniteError((first % scales.shape[-1]) * block)


def absmax(blocks: Tensor) -> Tensor:
    """fp32 [b, block] -> fp32 [b], the largest magnitude by integer bits."""
    return (as_bits(blocks) & 0x7FFFFFFF).amax(dim=1).view(torch.float32)


def bf16_up(x: Tensor, cap: int) -> Tensor:
    """fp32 >= 0 -> int32 bf16 bits, rounded up, at most `cap`."""
    return ((as_bits(x) + 0xFFFF) >> 16).clamp(max=cap)


def bf16_nearest(x: Tensor) -> Tensor:
    """fp32 finite -> int32 in [0, 65536): bf16 bits, ties to even, saturated at the largest finite value."""
    bits = as_bits(x)
    magnitude = bits & 0x7FFFFFFF
    rounded = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
    return rounded.clamp(max=BF16_MAX_BITS) | ((bits >> 16) & 0x8000)


def to_int16(bits: Tensor) -> Tensor:
    """int32 in [0, 65536) -> int16 with those bits."""
    return torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16)


def widen(scales: Tensor) -> Tensor:
    """int16 bf16 bits -> fp32."""
    return ((scales.to(torch.int32) & 0xFFFF) << 16).view(torch.float32)


def absmax_scale(largest: Tensor, level: int) -> Tensor:
    """fp32 [b] -> int32 [b]: bf16 bits of the absmax scale for the largest level `level`."""
    bits = bf16_up(largest / torch.full_like(largest, float(level)), SCALE_CAPS[level])
    return torch.where(as_bits(largest) < TINY_BITS, 0, bits)


def inverse(scale: Tensor) -> Tensor:
    """1 / scale by true division; 0 for 0."""
    return torch.where(scale == 0, 0.0, torch.ones_like(scale) / scale)


def mean_magnitude(blocks: Tensor, numel: int) -> Tensor:
    """fp32 [b, block] (zero-padded from `numel` elements) -> fp32 [b] mean |x| by the fixed fold."""
    count, block = blocks.shape
    width = next_power_of_two(block)
    v = torch.zeros(count, width, dtype=torch.float32, device=blocks.device)
    v[:, :block] = blocks.abs() * SUM_SHIFT
    while width > 1:
        width //= 2
        v = v[:, :width] + v[:, width:]
    counts = torch.full((count,), float(block), dtype=torch.float32, device=blocks.device)
    if count:
        counts[-1] = float(numel - (count - 1) * block)
    return v[:, 0] / (counts * SUM_SHIFT)
