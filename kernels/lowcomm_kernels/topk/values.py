"""Coding of the kept values of chunked top-k: 2, 8 or 16 bits each, one 16-bit scale for each chunk.

The bits are a specification: reference, numba and Triton give the same bytes. Codes of a chunk start at a byte.

2 bits: `sign | high << 1`, four to a byte, first in the low bits. A chunk has two magnitudes, `low` and `high`, found
by Lloyd's iteration for two levels (Lloyd 1982; Max 1960). It is all integer arithmetic, so no order of sums matters:

    e_i = max(exponent field of v_i, 1); E = max e_i; q_i = (24-bit significand of v_i) >> min(E - e_i, 31)
    T = 2 * (sum q // k); then five times: H = {i: 2 q_i >= T}, high = mean of H, low = mean of the rest (floor; 0 if
    empty), and T = low + high before the next one. Entry i has the bit `high` if it is in the last H.

The scale word is `exponent << 8 | mantissa << 5 | ratio`: the high level is `(1 + mantissa / 8) * 2**(exponent - 127)`
(round half up, at most exponent 254), the low level is `high * ratio / 32` (ratio 0 ... 31, round half up). With 64
kept of 4096 this costs 16 + 2 bytes. Tried beside it, squared error over squared norm on the kept Gaussian / Laplace
entries: one level 0.0120 / 0.0354, one scale with the best fixed ratio 0.0042 / 0.0128, this 0.0040 / 0.0117, two
unrounded levels 0.0038 / 0.0114.

8 bits: scale = bfloat16, rounded up, of `max|v| * float32(1/127)`, at most 0x7C01; code = `v / scale` (true division),
to nearest even, clamped to [-127, 127], two's complement. 16 bits: bfloat16, nearest even, at most the largest finite.

A chunk whose high level (2 bits) or largest magnitude (8 bits) is under 2**-100 has scale 0 and decodes to zeros, so
subnormal arithmetic never decides a bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output, use_threads
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk import values_reference
from lowcomm_kernels.topk.layout import Chunks, check_bits


@dataclass(frozen=True)
class Coded:
    """Coded values: `codes` uint8 [chunks.code_bytes(bits)], `scales` uint16 [chunks.scale_count(bits)]."""

    codes: Tensor
    scales: Tensor


def encode_values(
    values: Tensor, chunks: Chunks, *, bits: int = 2, path: Path | None = None, out: Coded | None = None
) -> Coded:
    """Code `values` (fp32 [chunks.kept], chunk after chunk).

    Raises:
        NonFiniteError: a value is NaN or infinite; `index` counts in `values`.
        ValueError: wrong shape, dtype or bits.
    """
    check_bits(bits)
    check_flat("values", values, torch.float32, chunks.kept)
    codes = output("codes", out and out.codes, chunks.code_bytes(bits), torch.uint8, values.device)
    scales = output("scales", out and out.scales, chunks.scale_count(bits), torch.uint16, values.device)
    chosen = choose_path(values.device, path)
    if chosen == "numba":
        from lowcomm_kernels.topk import values_numba

        use_threads()
        ok = values_numba.encode(values, chunks, bits, codes, scales)
    elif chosen == "triton":
        from lowcomm_kernels.topk import values_triton

        ok = values_triton.encode(values, chunks, bits, codes, scales)
    else:
        ok = values_reference.encode(values, chunks, bits, codes, scales)
    if not ok:
        raise NonFiniteError(first_nonfinite(values))
    return Coded(codes, scales)


def decode_values(
    coded: Coded, chunks: Chunks, *, bits: int = 2, path: Path | None = None, out: Tensor | None = None
) -> Tensor:
    """The values that `coded` stands for: fp32 [chunks.kept].

    Raises:
        ValueError: wrong shape, dtype or bits, or a scale or code that no encoder writes (infinite, NaN, too large).
    """
    check_bits(bits)
    check_flat("codes", coded.codes, torch.uint8, chunks.code_bytes(bits))
    check_flat("scales", coded.scales, torch.uint16, chunks.scale_count(bits))
    values = output("out", out, chunks.kept, torch.float32, coded.codes.device)
    chosen = choose_path(coded.codes.device, path)
    if chosen == "numba":
        from lowcomm_kernels.topk import values_numba

        use_threads()
        ok = values_numba.decode(coded.codes, coded.scales, chunks, bits, values)
    elif chosen == "triton":
        from lowcomm_kernels.topk import values_triton

        ok = values_triton.decode(coded.codes, coded.scales, chunks, bits, values)
    else:
        ok = values_reference.decode(coded.codes, coded.scales, chunks, bits, values)
    if not ok:
        raise ValueError("codes or scales: a coded value is infinite or NaN; expected what encode_values writes")
    return values


def first_nonfinite(x: Tensor) -> int:
    """Index of the first NaN or infinity of a tensor that has one."""
    return int((~torch.isfinite(x)).to(torch.uint8).argmax())
