"""Elias-Fano coding of the ascending indices of each chunk (Elias 1974; Fano 1971), at a size that is fixed beforehand.

A chunk of n elements that keeps k has `l = floor(log2(n / k))`. First come the low l bits of each index, packed from
the low bit of the first byte; then, from a new byte, `k + (n >> l)` bits of which bit `(index_i >> l) + i` is set for
each i. Unused bits are zero. With n = 4096 and k = 64 that is 48 + 16 = 64 bytes, one for each kept entry (the
information bound is 7.36 bits). Chunks follow each other without gaps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output
from lowcomm_kernels.elias_fano import reference
from lowcomm_kernels.elias_fano.layout import chunk_bytes, low_bits, packed_bytes
from lowcomm_kernels.topk.layout import Chunks

__all__ = ["chunk_bytes", "decode_indices", "encode_indices", "low_bits", "packed_bytes"]
from lowcomm_kernels.dispatch import use_threads


def encode_indices(indices: Tensor, chunks: Chunks, *, path: Path | None = None, out: Tensor | None = None) -> Tensor:
    """uint8 [packed_bytes(chunks)] of `indices` (uint16 [chunks.kept], strictly ascending in each chunk).

    Raises:
        ValueError: wrong shape or dtype; indices that do not ascend or lie outside their chunk.
    """
    check_flat("indices", indices, torch.uint16, chunks.kept)
    packed = output("out", out, packed_bytes(chunks), torch.uint8, indices.device)
    chosen = choose_path(indices.device, path)
    if chosen == "numba":
        from lowcomm_kernels.elias_fano import numba

        use_threads()
        bad = numba.encode(indices, chunks, packed)
    elif chosen == "triton":
        from lowcomm_kernels.elias_fano import triton

        bad = triton.encode(indices, chunks, packed)
    else:
        bad = reference.encode(indices, chunks, packed)
    if bad is not None:
        raise ValueError(f"indices: those of chunk {bad} do not ascend or leave the chunk; sort them, drop doubles")
    return packed


def decode_indices(packed: Tensor, chunks: Chunks, *, path: Path | None = None, out: Tensor | None = None) -> Tensor:
    """uint16 [chunks.kept] of `packed` (uint8 [packed_bytes(chunks)]), which may come from anybody.

    What is returned always ascends strictly and stays inside the chunks, and encodes to the same bytes again.

    Raises:
        ValueError: wrong shape or dtype; a wrong number of set bits, indices that do not ascend or leave their chunk,
            set padding bits. `out` is then unspecified.
    """
    check_flat("packed", packed, torch.uint8, packed_bytes(chunks))
    indices = output("out", out, chunks.kept, torch.uint16, packed.device)
    chosen = choose_path(packed.device, path)
    if chosen == "numba":
        from lowcomm_kernels.elias_fano import numba

        use_threads()
        bad = numba.decode(packed, chunks, indices)
    elif chosen == "triton":
        from lowcomm_kernels.elias_fano import triton

        bad = triton.decode(packed, chunks, indices)
    else:
        bad = reference.decode(packed, chunks, indices)
    if bad is not None:
        raise ValueError(f"packed: the indices of chunk {bad} are malformed; drop the payload")
    return indices
