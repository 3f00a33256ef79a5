"""Triton form of `sparse_decode`: one program owns a chunk, so peers are added in rank order without atomics."""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks, chunk_code_bytes
from lowcomm_kernels.topk.triton import block_of
from lowcomm_kernels.topk.values_triton import decode_kept, keep_block, load_codes


@triton.jit
def _sparse_decode_kernel(
    indices, codes, scales, weights, out, bad, peers, kept, code_bytes, count, n, k, size,
    BITS: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    c = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    part = out + c * n
    tl.store(part + lane, tl.zeros((BLOCK,), tl.float32), mask=lane < n)
    entry = tl.arange(0, KEEP)
    inside = entry < k
    wrong = tl.zeros((KEEP,), tl.int32)
    code_at = codes + c * size
    scale_at = scales + c
    index_at = indices + c * k + entry
    for peer in range(peers):
        code = load_codes(code_at, k, BITS, KEEP)
        word = tl.load(scale_at).to(tl.int32) if BITS != 16 else 0
        value, good = decode_kept(code, word, BITS)
        where = tl.load(index_at, mask=inside, other=0).to(tl.int32)
        legal = where < n
        wrong |= (inside & ((good == 0) | (legal == 0))).to(tl.int32)
        # What other threads of this program wrote, zeros or an earlier peer, is read back from here.
        tl.debug_barrier()
        now = tl.load(part + where, mask=inside & legal, other=0.0)
        tl.store(part + where, now + tl.load(weights + peer) * value, mask=inside & legal)
        code_at += code_bytes
        scale_at += count
        index_at += kept
    tl.store(bad + c, tl.max(wrong, axis=0))


def sparse_decode(
    indices: Tensor, codes: Tensor, scales: Tensor, weights: Tensor, chunks: Chunks, bits: int, out: Tensor
) -> bool:
    """Fill `out`; False if an index leaves its chunk or a value is not finite."""
    bad = torch.zeros(chunks.count, dtype=torch.int32, device=out.device)
    block, warps = block_of(chunks)
    sizes = (weights.numel(), chunks.kept, chunks.code_bytes(bits), chunks.scale_count(bits))
    # Only the first rows are sliced: the kernel steps from peer to peer by `sizes`.
    flat_indices, flat_codes, flat_scales = indices.view(-1), codes.view(-1), scales.view(-1)
    for first, count, n, k in chunks.parts():
        _sparse_decode_kernel[(count,)](
            flat_indices[first * chunks.k :], flat_codes[first * chunk_code_bytes(chunks.k, bits) :],
            flat_scales[first:], weights, out[first * chunks.chunk :], bad[first:], *sizes, n, k,
            chunk_code_bytes(k, bits), bits, block, keep_block(chunks),
            num_warps=min(warps, 4), enable_fp_fusion=False,
        )  # fmt: skip
    return not bool(bad.any())
