"""Blockwise quantisation to 8, 4 or 2 bits, alone or fused with the pseudo-gradient and its error feedback.

Scales, blocks and the fixed fold are specified in `lowcomm_kernels.bits`; every step below is one fp32 operation.

    y = x * inverse(scale)
    t = y                         8 and 4 bits
    t = y * 0.5 + 1.5             2 bits
    t = t + noise                 stochastic only; noise = (2 r - 65535) * 2**-17, r the 16 Philox bits of the element
    code = clamp(round_half_even(t), low, high)

bits | code range    | value               | in the byte                                        | scale
  8  | -127 ... 127  | code * scale        | two's complement                                   | absmax / 127, up
  4  | -7 ... 7      | code * scale        | two's complement nibble, even element in the low   | absmax / 7, up
  2  | 0 ... 3       | (2 code - 3) * scale| bits 2 (i % 4) and up for element i                | see below

Unused bits of the last byte are 0. -128 and -8 are never written; they decode as what they say.

2 bits have the levels -3, -1, 1, 3: with a zero level one of four codes would be lost to symmetry, and three levels
lose 0.19 of a Gaussian's energy where four lose 0.12. Nearest takes `scale = up(0.625 * mean |x|)`, close to the best
step for a Gaussian (0.498 sigma), and clips; absmax / 3 would put every level too far out (it loses 0.4). Stochastic
takes absmax / 3, because clipping would bias it. A block of zeros has scale 0 (codes then mean nothing: 2-bit ones
are not 0).

Element `i` of a call draws the random bits of `offset + i`, so a tensor encoded in parts at block bounds has the
bytes of the whole. Wire bytes per element at block 256: 1.0078, 0.5078, 0.2578.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lowcomm_kernels.bits import block_count, check_bits, check_block, packed_bytes
from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output
from lowcomm_kernels.philox import check_offset, signed_seed

Rounding = Literal["nearest", "stochastic"]


class Quantised(NamedTuple):
    """`codes`: uint8 [ceil(n * bits / 8)]; `scales`: int16 [ceil(n / block)], the bits of bf16 numbers."""

    codes: Tensor
    scales: Tensor


def empty_quantised(numel: int, *, bits: int, block: int = 256, device: torch.device | None = None) -> Quantised:
    """Uninitialised buffers for `out=`."""
    check_bits(bits)
    check_block(block)
    return Quantised(
        torch.empty(packed_bytes(numel, bits), dtype=torch.uint8, device=device),
        torch.empty(block_count(numel, block), dtype=torch.int16, device=device),
    )


def quantise(
    x: Tensor,
    *,
    bits: int,
    block: int = 256,
    rounding: Rounding = "nearest",
    seed: int = 0,
    offset: int = 0,
    out: Quantised | None = None,
    path: Path | None = None,
) -> Quantised:
    """Quantise fp32 [n]; reads 4 and writes bits / 8 + 2 / block bytes per element.

    Args:
        x: contiguous, 1-D, fp32; n = 0 is allowed.
        bits: 8, 4 or 2.
        block: elements per scale, a multiple of 16 up to 4096.
        seed: 64-bit unsigned, used by stochastic rounding only, as is `offset`.
        offset: global element index of x[0], a multiple of 8.
        out: buffers to fill (every byte is written).
        path: forces an implementation; left out, the device decides.

    Raises:
        NonFiniteError: x holds NaN or infinity; `out` is then undefined.
        ValueError: an argument is out of range.
    """
    check_flat("x", x, torch.float32)
    stochastic = _check(bits, block, rounding, offset)
    result = _outputs(x.numel(), bits, block, out, x.device)
    if x.numel() == 0:
        return result
    impl = _implementation(x.device, path)
    impl.quantise(x, *result, bits=bits, block=block, stochastic=stochastic, seed=signed_seed(seed), offset=offset)
    return result


def delta_quantise(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    *,
    beta: float,
    bits: int,
    block: int = 256,
    rounding: Rounding = "nearest",
    seed: int = 0,
    offset: int = 0,
    out: Quantised | None = None,
    error_out: Tensor | None = None,
    path: Path | None = None,
) -> Quantised:
    """Pseudo-gradient, error feedback and quantisation in one pass (17 bytes per element at 8 bits).

    d = (old - new) + (beta * error), each operation rounded; q = quantise(d); error' = d - value(q).
    With `new` None, `old` is the pseudo-gradient itself: d = old + (beta * error).

    Args:
        old, new, error: fp32 [n] each.
        error_out: where error' goes; left out, it replaces `error`.

    Raises:
        NonFiniteError: d is not finite somewhere. `error` is then partly overwritten unless `error_out` was given:
            hand in a second buffer if the call must be undoable.
        ValueError: an argument is out of range.
    """
    for name, tensor in (("old", old), ("new", new), ("error", error), ("error_out", error_out)):
        if tensor is not None:
            check_flat(name, tensor, torch.float32, old.numel())
    stochastic = _check(bits, block, rounding, offset)
    result = _outputs(old.numel(), bits, block, out, old.device)
    if old.numel() == 0:
        return result
    impl = _implementation(old.device, path)
    target = error if error_out is None else error_out
    impl.delta_quantise(
        old, new, error, target, *result,
        beta=beta, bits=bits, block=block, stochastic=stochastic, seed=signed_seed(seed), offset=offset,
    )  # fmt: skip
    return result


def _check(bits: int, block: int, rounding: Rounding, offset: int) -> bool:
    check_bits(bits)
    check_block(block)
    check_offset(offset)
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding={rounding!r}: expected nearest or stochastic")
    return rounding == "stochastic"


def _outputs(numel: int, bits: int, block: int, out: Quantised | None, device: torch.device) -> Quantised:
    codes, scales = (None, None) if out is None else out
    return Quantised(
        output("out.codes", codes, packed_bytes(numel, bits), torch.uint8, device),
        output("out.scales", scales, block_count(numel, block), torch.int16, device),
    )


def _implementation(device: torch.device, path: Path | None):
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.quantise import numba as impl
    elif chosen == "triton":
        from lowcomm_kernels.quantise import triton as impl
    else:
        from lowcomm_kernels.quantise import reference as impl
    return impl
