"""One bit per element and a scale per block; alone or fused with error feedback; and the way back.

signSGD with error feedback: Karimireddy et al., arXiv 1901.09847.

    bit = 1 if x >= 0 (so for +0 and -0) else 0;  element i is bit i % 8 of byte i // 8, unused bits are 0
    scale = bf16(mean |x| of the block), ties to even, at most the largest finite bf16; 0 if max |x| < 2**-100
    value = scale if bit else -scale

The mean's order of summation is fixed (`lowcomm_kernels.bits`), so all paths give the same bytes.
Wire: 0.1328 bytes per element at block 256.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lowcomm_kernels.bits import block_count, check_block, check_scales
from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output


class Signs(NamedTuple):
    """`words`: uint8 [ceil(n / 8)]; `scales`: int16 [ceil(n / block)], the bits of bf16 numbers."""

    words: Tensor
    scales: Tensor


def sign_pack(x: Tensor, *, block: int = 256, out: Signs | None = None, path: Path | None = None) -> Signs:
    """Pack fp32 [n]; reads 4 and writes 0.133 bytes per element.

    Raises:
        NonFiniteError: x holds NaN or infinity; `out` is then undefined.
        ValueError: sizes, types or the block do not fit.
    """
    check_flat("x", x, torch.float32)
    result = _outputs(x.numel(), block, out, x.device)
    if x.numel():
        _implementation(x.device, path).sign_pack(x, *result, block=block)
    return result


def delta_sign(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    *,
    beta: float,
    block: int = 256,
    out: Signs | None = None,
    error_out: Tensor | None = None,
    path: Path | None = None,
) -> Signs:
    """d = (old - new) + (beta * error); pack d; error' = d - value, in place or into `error_out` (16.1 bytes/element).

    With `new` None, `old` is the pseudo-gradient itself.

    Raises:
        NonFiniteError: d is not finite somewhere; without `error_out`, `error` is then partly overwritten.
        ValueError: sizes, types or the block do not fit.
    """
    for name, tensor in (("old", old), ("new", new), ("error", error), ("error_out", error_out)):
        if tensor is not None:
            check_flat(name, tensor, torch.float32, old.numel())
    result = _outputs(old.numel(), block, out, old.device)
    target = error if error_out is None else error_out
    if old.numel():
        _implementation(old.device, path).delta_sign(old, new, error, target, *result, beta=beta, block=block)
    return result


def sign_unpack(
    signs: Signs, numel: int, *, block: int = 256, out: Tensor | None = None, path: Path | None = None
) -> Tensor:
    """fp32 [numel] of the values.

    Raises:
        NonFiniteError: a scale is NaN, infinite or negative.
        ValueError: sizes or types do not fit.
    """
    _check(signs, numel, block)
    result = output("out", out, numel, torch.float32, signs.words.device)
    if numel:
        _implementation(result.device, path).sign_unpack(*signs, result, block=block)
    return result


def sign_accumulate(signs: Signs, acc: Tensor, weight: float, *, block: int = 256, path: Path | None = None) -> None:
    """acc (fp32 [n]) = acc + (weight * value), both rounded, in place. Raises as `sign_unpack` does."""
    check_flat("acc", acc, torch.float32)
    _check(signs, acc.numel(), block)
    if acc.numel():
        _implementation(acc.device, path).sign_accumulate(*signs, acc, weight=weight, block=block)


def _outputs(numel: int, block: int, out: Signs | None, device: torch.device) -> Signs:
    check_block(block)
    words, scales = (None, None) if out is None else out
    return Signs(
        output("out.words", words, -(-numel // 8), torch.uint8, device),
        output("out.scales", scales, block_count(numel, block), torch.int16, device),
    )


def _check(signs: Signs, numel: int, block: int) -> None:
    check_block(block)
    check_flat("words", signs.words, torch.uint8, -(-numel // 8))
    check_flat("scales", signs.scales, torch.int16, block_count(numel, block))
    check_scales(signs.scales, block)


def _implementation(device: torch.device, path: Path | None):
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.sign import numba as impl
    elif chosen == "triton":
        from lowcomm_kernels.sign import triton as impl
    else:
        from lowcomm_kernels.sign import reference as impl
    return impl
