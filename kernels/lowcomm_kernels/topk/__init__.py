"""Chunked exact top-k by magnitude, alone and fused with error feedback and coding of the values.

Each chunk keeps the k entries of largest |x|; of equal magnitudes, the one with the lower index. Magnitudes are
compared as the integers of their bits, so subnormal numbers count and +0 equals -0. Indices are within the chunk and
ascend.
Used by SparseLoCo (arXiv 2508.15706) with 64 of 4096 and 2 bits; `layout.py` has the sizes, `values.py` the coding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk import reference
from lowcomm_kernels.topk.layout import Chunks, check_bits, chunk_code_bytes
from lowcomm_kernels.topk.threshold import Ragged, threshold
from lowcomm_kernels.topk.values import Coded, decode_values, encode_values, first_nonfinite

__all__ = [
    "Chunks",
    "Coded",
    "Kept",
    "Ragged",
    "Sparse",
    "chunk_code_bytes",
    "decode_values",
    "delta_topk",
    "encode_values",
    "first_nonfinite",
    "threshold",
    "topk",
]
from lowcomm_kernels.dispatch import use_threads


@dataclass(frozen=True)
class Kept:
    """`indices` uint16 [chunks.kept], ascending in each chunk; `values` fp32 [chunks.kept]."""

    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class Sparse:
    """What is sent: uint16 [chunks.kept], uint8 [chunks.code_bytes(bits)], uint16 [chunks.scale_count(bits)]."""

    indices: Tensor
    codes: Tensor
    scales: Tensor


def topk(x: Tensor, chunks: Chunks, *, path: Path | None = None, out: Kept | None = None) -> Kept:
    """The entries of `x` (fp32 [chunks.numel]) that are kept.

    Least traffic: 4 + 6 rho bytes per element, rho = k / chunk.

    Raises:
        NonFiniteError: `x` holds NaN or infinity.
        ValueError: wrong shape or dtype.
    """
    check_flat("x", x, torch.float32, chunks.numel)
    indices = output("indices", out and out.indices, chunks.kept, torch.uint16, x.device)
    values = output("values", out and out.values, chunks.kept, torch.float32, x.device)
    chosen = choose_path(x.device, path)
    if chosen == "numba":
        from lowcomm_kernels.topk import numba

        use_threads()
        ok = numba.topk(x, chunks, indices, values)
    elif chosen == "triton":
        from lowcomm_kernels.topk import triton

        ok = triton.topk(x, chunks, indices, values)
    else:
        ok = reference.topk(x, chunks, indices, values)
    if not ok:
        raise NonFiniteError(first_nonfinite(x))
    return Kept(indices, values)


def delta_topk(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    chunks: Chunks,
    *,
    beta: float = 1.0,
    bits: int = 2,
    path: Path | None = None,
    out: Sparse | None = None,
) -> Sparse:
    """Code the top-k of `d = (old - new) + beta * error` and leave `d - sent` in `error`, in one pass.

    All fp32 [chunks.numel]; each operation is rounded. `new=None` means that `old` is the difference already.
    Least traffic: 16 + 2.25 rho bytes per element with `new` (2 bits), 12 without.

    Raises:
        NonFiniteError: d holds NaN or infinity; `error` is then lost (some chunks hold d, some the new error).
        ValueError: wrong shape, dtype or bits.
    """
    check_bits(bits)
    check_flat("old", old, torch.float32, chunks.numel)
    check_flat("error", error, torch.float32, chunks.numel)
    if new is not None:
        check_flat("new", new, torch.float32, chunks.numel)
    indices = output("indices", out and out.indices, chunks.kept, torch.uint16, old.device)
    codes = output("codes", out and out.codes, chunks.code_bytes(bits), torch.uint8, old.device)
    scales = output("scales", out and out.scales, chunks.scale_count(bits), torch.uint16, old.device)
    chosen = choose_path(old.device, path)
    if chosen == "numba":
        from lowcomm_kernels.topk import numba

        use_threads()
        ok = numba.delta_topk(old, new, error, beta, chunks, bits, indices, codes, scales)
    elif chosen == "triton":
        from lowcomm_kernels.topk import triton

        ok = triton.delta_topk(old, new, error, beta, chunks, bits, indices, codes, scales)
    else:
        ok = reference.delta_topk(old, new, error, beta, chunks, bits, indices, codes, scales)
    if not ok:
        raise NonFiniteError(first_nonfinite(error))
    return Sparse(indices, codes, scales)
