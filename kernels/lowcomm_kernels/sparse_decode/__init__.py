"""Weighted sum of the sparse payloads of W peers as a dense tensor, in one pass over the output.

`out[j] = sum over peers w, in rank order, of weight_w * value_w(j)`, from zero; each product and each sum is rounded to
fp32. The mean over peers is the sum with `weight_w = tokens_w / tokens`. Values are coded as in `topk/values.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, choose_path, output, use_threads
from lowcomm_kernels.sparse_decode import reference
from lowcomm_kernels.topk.layout import Chunks, check_bits


def sparse_decode(
    indices: Tensor,
    codes: Tensor,
    scales: Tensor,
    weights: Tensor,
    chunks: Chunks,
    *,
    bits: int = 2,
    path: Path | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """fp32 [chunks.numel] of W peers' payloads. Least traffic: 4 + 2.25 rho W bytes per element (2 bits).

    Args:
        indices: uint16 [W, chunks.kept], no index twice in a chunk (what `decode_indices` returns).
        codes: uint8 [W, chunks.code_bytes(bits)].
        scales: uint16 [W, chunks.scale_count(bits)].
        weights: fp32 [W], finite.

    Raises:
        ValueError: wrong shape or dtype; an index outside its chunk, a scale or code that is infinite or NaN. `out` is
            then unspecified.
    """
    check_bits(bits)
    peers = indices.shape[0] if indices.dim() == 2 else 0
    _check("indices", indices, torch.uint16, (peers, chunks.kept))
    _check("codes", codes, torch.uint8, (peers, chunks.code_bytes(bits)))
    _check("scales", scales, torch.uint16, (peers, chunks.scale_count(bits)))
    _check("weights", weights, torch.float32, (peers,))
    if not bool(torch.isfinite(weights).all()):
        raise ValueError(f"weights={weights.tolist()}: expected finite weights")
    dense = output("out", out, chunks.numel, torch.float32, indices.device)
    chosen = choose_path(indices.device, path)
    if chosen == "numba":
        from lowcomm_kernels.sparse_decode import numba

        use_threads()
        ok = numba.sparse_decode(indices, codes, scales, weights, chunks, bits, dense)
    elif chosen == "triton":
        from lowcomm_kernels.sparse_decode import triton

        ok = triton.sparse_decode(indices, codes, scales, weights, chunks, bits, dense)
    else:
        ok = reference.sparse_decode(indices, codes, scales, weights, chunks, bits, dense)
    if not ok:
        raise ValueError("payload: an index leaves its chunk or a value is infinite or NaN; drop that peer's payload")
    return dense


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: got {tensor.dtype} {tuple(tensor.shape)}; expected contiguous {dtype} {shape} (peers first)"
        )
