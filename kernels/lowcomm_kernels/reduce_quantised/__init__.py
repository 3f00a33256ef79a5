"""Combine the packed chunks of W peers in rank order: to packed codes again, or to fp32.

acc = 0; for each peer w in order: acc = acc + (weight[w] * (level * scale)), each operation rounded.
Then `quantise(acc)`, and error = acc - value if asked for. Every peer's bytes are read once, nothing of fp32 is
written unless asked for: (W + 1) * 1.008 bytes per element at 8 bits. Weights are used as given: for a mean they
sum to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.bits import block_count, check_bits, check_block, check_scales, packed_bytes
from lowcomm_kernels.dispatch import Path, check_flat, check_rows, choose_path, output
from lowcomm_kernels.philox import check_offset, signed_seed
from lowcomm_kernels.quantise import Quantised, Rounding


def reduce_quantised(
    codes: Tensor,
    scales: Tensor,
    weights: Tensor,
    numel: int,
    *,
    bits: int,
    out_bits: int | None = None,
    block: int = 256,
    rounding: Rounding = "nearest",
    seed: int = 0,
    offset: int = 0,
    out: Quantised | None = None,
    error_out: Tensor | None = None,
    path: Path | None = None,
) -> Quantised:
    """Weighted sum of W peers' codes, quantised again.

    Args:
        codes: uint8 [W, ceil(numel * bits / 8)]; rows may lie apart in a receive buffer.
        scales: int16 [W, ceil(numel / block)], likewise.
        weights: fp32 [W], contiguous, finite.
        out_bits: bits of the result; left out, those of the input.
        error_out: fp32 [numel] for what the second quantisation lost, to feed back.

    Raises:
        NonFiniteError: a scale is NaN, infinite or negative, or the sum is not finite.
        ValueError: sizes, types or settings do not fit.
    """
    result_bits = bits if out_bits is None else out_bits
    check_bits(result_bits)
    check_offset(offset)
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding={rounding!r}: expected nearest or stochastic")
    _check(codes, scales, weights, numel, bits, block)
    given = (None, None) if out is None else out
    result = Quantised(
        output("out.codes", given[0], packed_bytes(numel, result_bits), torch.uint8, codes.device),
        output("out.scales", given[1], block_count(numel, block), torch.int16, codes.device),
    )
    if error_out is not None:
        check_flat("error_out", error_out, torch.float32, numel)
    if numel:
        _implementation(codes.device, path).reduce_quantised(
            codes, scales, weights, *result, error_out, numel=numel, bits=bits, out_bits=result_bits, block=block,
            stochastic=rounding == "stochastic", seed=signed_seed(seed), offset=offset,
        )  # fmt: skip
    return result


def reduce_to_float(
    codes: Tensor,
    scales: Tensor,
    weights: Tensor,
    numel: int,
    *,
    bits: int,
    block: int = 256,
    out: Tensor | None = None,
    path: Path | None = None,
) -> Tensor:
    """The same sum as fp32 [numel]; arguments and errors as for `reduce_quantised`, except that overflow is kept."""
    _check(codes, scales, weights, numel, bits, block)
    result = output("out", out, numel, torch.float32, codes.device)
    if numel:
        _implementation(codes.device, path).reduce_to_float(codes, scales, weights, result, bits=bits, block=block)
    return result


def _check(codes: Tensor, scales: Tensor, weights: Tensor, numel: int, bits: int, block: int) -> None:
    check_bits(bits)
    check_block(block)
    check_flat("weights", weights, torch.float32)
    if weights.numel() == 0:
        raise ValueError("weights.numel=0: expected one weight for each of at least 1 peer")
    check_rows("codes", codes, torch.uint8, weights.numel(), packed_bytes(numel, bits))
    check_rows("scales", scales, torch.int16, weights.numel(), block_count(numel, block))
    check_scales(scales, block)


def _implementation(device: torch.device, path: Path | None):
    chosen = choose_path(device, path)
    if chosen == "numba":
        from lowcomm_kernels.reduce_quantised import numba as impl
    elif chosen == "triton":
        from lowcomm_kernels.reduce_quantised import triton as impl
    else:
        from lowcomm_kernels.reduce_quantised import reference as impl
    return impl
