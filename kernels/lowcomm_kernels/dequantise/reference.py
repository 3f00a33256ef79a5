"""Eager torch: the specification in code."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import widen
from lowcomm_kernels.quantise.reference import unpack


def values(codes: Tensor, scales: Tensor, numel: int, bits: int, block: int) -> Tensor:
    """fp32 [numel]."""
    return unpack(codes, bits, numel).to(torch.float32) * widen(scales).repeat_interleave(block)[:numel]


def dequantise(codes: Tensor, scales: Tensor, out: Tensor, *, bits: int, block: int) -> None:
    """Fill `out`."""
    out.copy_(values(codes, scales, out.numel(), bits, block))


def dequantise_accumulate(codes: Tensor, scales: Tensor, acc: Tensor, *, weight: float, bits: int, block: int) -> None:
    """Add to `acc`."""
    value = values(codes, scales, acc.numel(), bits, block)
    acc.add_(torch.full_like(value, weight) * value)
