"""Eager torch: the specification in code."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import (
    TINY_BITS,
    absmax,
    as_bits,
    bf16_nearest,
    check_finite,
    mean_magnitude,
    to_blocks,
    to_int16,
    widen,
)


def pack_bits(bits: Tensor, out: Tensor) -> None:
    """bool [n] -> uint8 [ceil(n / 8)], first element in the lowest bit."""
    padded = torch.zeros(out.numel() * 8, dtype=torch.int32, device=bits.device)
    padded[: bits.numel()] = bits
    out.copy_((padded.view(-1, 8) << torch.arange(8, dtype=torch.int32, device=bits.device)).sum(1).to(torch.uint8))


def unpack_bits(words: Tensor, numel: int) -> Tensor:
    """uint8 [ceil(n / 8)] -> bool [n]."""
    shifts = torch.arange(8, dtype=torch.int32, device=words.device)
    return ((words.to(torch.int32)[:, None] >> shifts) & 1).reshape(-1)[:numel].bool()


def values(words: Tensor, scales: Tensor, numel: int, block: int) -> Tensor:
    """fp32 [numel]."""
    scale = widen(scales).repeat_interleave(block)[:numel]
    return torch.where(unpack_bits(words, numel), scale, -scale)


def sign_pack(x: Tensor, words: Tensor, scales: Tensor, *, block: int) -> None:
    """Fill `words` and `scales`. Raises NonFiniteError."""
    check_finite(x)
    blocks = to_blocks(x, block)
    found = bf16_nearest(mean_magnitude(blocks, x.numel()))
    scales.copy_(to_int16(torch.where(as_bits(absmax(blocks)) < TINY_BITS, 0, found)))
    pack_bits(x >= 0, words)


def delta_sign(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    error_out: Tensor,
    words: Tensor,
    scales: Tensor,
    *,
    beta: float,
    block: int,
) -> None:
    """Fill the outputs; `error_out` may be `error`. Raises NonFiniteError."""
    d = (old if new is None else old - new) + torch.full_like(error, beta) * error
    sign_pack(d, words, scales, block=block)
    torch.sub(d, values(words, scales, d.numel(), block), out=error_out)


def sign_unpack(words: Tensor, scales: Tensor, out: Tensor, *, block: int) -> None:
    """Fill `out`."""
    out.copy_(values(words, scales, out.numel(), block))


def sign_accumulate(words: Tensor, scales: Tensor, acc: Tensor, *, weight: float, block: int) -> None:
    """Add to `acc`."""
    value = values(words, scales, acc.numel(), block)
    acc.add_(torch.full_like(value, weight) * value)
