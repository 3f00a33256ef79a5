"""Decode blockwise codes to fp32, or add them to fp32: the inverse of `lowcomm_kernels.quantise`.

value = level * scale is exact; acc' = acc + (weight * value), the product and the sum each rounded.
Least traffic at 8 bits: 5.01 bytes per element, 9.01 with the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import block_count, check_bits, check_block, check_scales, packed_bytes
from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output
from lowcomm_kernels.quantise import Quantised


def dequantise(
    q: Quantised, numel: int, *, bits: int, block: int = 256, out: Tensor | None = None, path: Path | None = None
) -> Tensor:
    """fp32 [numel] from codes and scales.

    Raises:
        NonFiniteError: a scale is NaN, infinite or negative; the index is the first element of its block.
        ValueError: sizes or types do not fit.
    """
    _check(q, numel, bits, block)
    result = output("out", out, numel, torch.float32, q.codes.device)
    if numel:
        _implementation(q.codes.device, path).dequantise(*q, result, bits=bits, block=block)
    return result


def dequantise_accumulate(
    q: Quantised, acc: Tensor, weight: float, *, bits: int, block: int = 256, path: Path | None = None
) -> None:
    """acc (fp32 [n]) += weight * value, in place; `weight` is rounded to fp32 first.

    Raises:
        NonFiniteError: a scale is NaN, infinite or negative; `acc` is untouched.
        ValueError: sizes or types do not fit.
    """
    check_flat("acc", acc, torch.float32)
    _check(q, acc.numel(), bits, block)
    if acc.numel():
        _implementation(acc.device, path).dequantise_accumulate(*q, acc, weight=weight, bits=bits, block=block)


def _check(q: Quantised, numel: int, bits: int, block: int) -> None:
    check_bits(bits)
    check_block(block)
    check_flat("codes", q.codes, torch.uint8, packed_bytes(numel, bits))
    check_flat("scales", q.scales, torch.int16, block_count(numel, block))
    check_scales(q.scales, block)


def _implementation(device: torch.device, path: Path | None):
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.dequantise import numba as impl
    elif chosen == "triton":
        from lowcomm_kernels.dequantise import triton as impl
    else:
        from lowcomm_kernels.dequantise import reference as impl
    return impl
