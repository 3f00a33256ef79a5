"""fp8 (e4m3fn) with a scale per block, and plain bf16; encoded with integer arithmetic on every path.

    scale as in `lowcomm_kernels.bits` with largest level 448;  y = x * inverse(scale)
    |y| >= 2**-6:  code = ((bits + 0x7FFFF + (bit 20 of bits)) >> 20) - 960, at most 0x7E   (ties to even, 448 at most)
    |y| <  2**-6:  code = round_half_even(|y| * 512)                                        (subnormals, step 2**-9)
    code |= 0x80 if the sign bit of y is set

The bytes are those of `torch.float8_e4m3fn`; 0x7F and 0xFF (NaN) are never written and decode to NaN.
value = decoded * scale is exact (4 + 8 mantissa bits). bf16: ties to even, saturated at the largest finite value.
Wire: 1.0078 bytes per element at block 256, and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import block_count, check_block, check_scales
from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output
from lowcomm_kernels.quantise import Quantised


def encode_fp8(x: Tensor, *, block: int = 256, out: Quantised | None = None, path: Path | None = None) -> Quantised:
    """fp32 [n] -> codes uint8 [n], scales int16 [ceil(n / block)].

    Raises:
        NonFiniteError: x holds NaN or infinity; `out` is then undefined.
        ValueError: sizes, types or the block do not fit.
    """
    check_flat("x", x, torch.float32)
    check_block(block)
    codes, scales = (None, None) if out is None else out
    result = Quantised(
        output("out.codes", codes, x.numel(), torch.uint8, x.device),
        output("out.scales", scales, block_count(x.numel(), block), torch.int16, x.device),
    )
    if x.numel():
        _implementation(x.device, path).encode_fp8(x, *result, block=block)
    return result


def decode_fp8(q: Quantised, *, block: int = 256, out: Tensor | None = None, path: Path | None = None) -> Tensor:
    """fp32 [n] of the values; NaN codes give NaN.

    Raises:
        NonFiniteError: a scale is NaN, infinite or negative.
        ValueError: sizes, types or the block do not fit.
    """
    check_block(block)
    check_flat("codes", q.codes, torch.uint8)
    check_flat("scales", q.scales, torch.int16, block_count(q.codes.numel(), block))
    check_scales(q.scales, block)
    result = output("out", out, q.codes.numel(), torch.float32, q.codes.device)
    if result.numel():
        _implementation(result.device, path).decode_fp8(*q, result, block=block)
    return result


def encode_bf16(x: Tensor, *, out: Tensor | None = None, path: Path | None = None) -> Tensor:
    """fp32 [n] -> int16 [n], the bits of bf16. Raises NonFiniteError, ValueError as `encode_fp8`."""
    check_flat("x", x, torch.float32)
    result = output("out", out, x.numel(), torch.int16, x.device)
    if x.numel():
        _implementation(x.device, path).encode_bf16(x, result)
    return result


def decode_bf16(bits: Tensor, *, out: Tensor | None = None, path: Path | None = None) -> Tensor:
    """int16 [n] -> fp32 [n], exact; NaN and infinity pass. Raises ValueError."""
    check_flat("bits", bits, torch.int16)
    result = output("out", out, bits.numel(), torch.float32, bits.device)
    if bits.numel():
        _implementation(bits.device, path).decode_bf16(bits, result)
    return result


def _implementation(device: torch.device, path: Path | None):
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.fp8 import numba as impl
    elif chosen == "triton":
        from lowcomm_kernels.fp8 import triton as impl
    else:
        from lowcomm_kernels.fp8 import reference as impl
    return impl
