"""Eager torch: the specification in code."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import check_finite, to_int16
from lowcomm_kernels.dequantise.reference import values
from lowcomm_kernels.quantise.reference import encode, pack


def reduce_to_float(codes: Tensor, scales: Tensor, weights: Tensor, out: Tensor, *, bits: int, block: int) -> None:
    """Fill `out`."""
    out.zero_()
    for row, scale, weight in zip(codes, scales, weights, strict=True):
        out.add_(weight * values(row, scale, out.numel(), bits, block))


def reduce_quantised(
    codes: Tensor,
    scales: Tensor,
    weights: Tensor,
    out_codes: Tensor,
    out_scales: Tensor,
    error_out: Tensor | None,
    *,
    numel: int,
    bits: int,
    out_bits: int,
    block: int,
    stochastic: bool,
    seed: int,
    offset: int,
) -> None:
    """Fill the outputs."""
    acc = torch.empty(numel, dtype=torch.float32, device=codes.device)
    reduce_to_float(codes, scales, weights, acc, bits=bits, block=block)
    check_finite(acc)
    found, scale, value = encode(acc, out_bits, block, stochastic, seed, offset)
    pack(found, out_bits, out_codes)
    out_scales.copy_(to_int16(scale))
    if error_out is not None:
        torch.sub(acc, value, out=error_out)
