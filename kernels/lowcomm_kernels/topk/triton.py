"""Triton form of chunked top-k, alone and fused with error feedback; the specification is in `__init__.py`.

One program for each chunk; full chunks and a short last one are two launches, so that the bound of the full ones is a
multiple of 16 and their accesses are 16 bytes wide. The kept entries go through global memory once (they are in the L1
cache) so that the coding works on k values and not on the whole chunk.
"""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.topk.layout import Chunks, chunk_code_bytes
from lowcomm_kernels.topk.select_triton import INFINITY, magnitude_keys, select
from lowcomm_kernels.topk.values_triton import decode_kept, encode_kept, keep_block, store_codes

MAX_BLOCK = 16384
"""Above this a chunk does not fit the registers of one program."""


@triton.jit
def _topk_kernel(x, indices, values, bad, n, k, BLOCK: tl.constexpr):  # noqa: N803
    c = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < n
    v = tl.load(x + c * n + lane, mask=inside, other=0.0)
    take, place, top = select(magnitude_keys(v, inside), k, BLOCK)
    tl.store(indices + c * k + place, lane.to(tl.uint16), mask=take)
    tl.store(values + c * k + place, v, mask=take)
    tl.store(bad + c, (top >= INFINITY).to(tl.int32))


@triton.jit
def _delta_topk_kernel(
    old, new, error, beta, indices, values, codes, scales, bad, n, k, size,
    HAS_NEW: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    c = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < n
    d = tl.load(old + c * n + lane, mask=inside, other=0.0)
    if HAS_NEW:
        d = d - tl.load(new + c * n + lane, mask=inside, other=0.0)
    d = d + beta * tl.load(error + c * n + lane, mask=inside, other=0.0)
    tl.store(error + c * n + lane, d, mask=inside)
    take, place, top = select(magnitude_keys(d, inside), k, BLOCK)
    tl.store(indices + c * k + place, lane.to(tl.uint16), mask=take)
    tl.store(values + c * k + place, d, mask=take)
    tl.store(bad + c, (top >= INFINITY).to(tl.int32))
    tl.debug_barrier()  # the kept entries, written by other threads of this program, are read back
    entry = tl.arange(0, KEEP)
    v = tl.load(values + c * k + entry, mask=entry < k, other=0.0)
    where = tl.load(indices + c * k + entry, mask=entry < k, other=0).to(tl.int32)
    code, word = encode_kept(v, k, BITS, KEEP)
    store_codes(codes + c * size, code, k, BITS, KEEP)
    if BITS != 16:
        tl.store(scales + c, word.to(tl.uint16))
    sent, _ = decode_kept(code, word, BITS)
    tl.store(error + c * n + where, v - sent, mask=entry < k)


def block_of(chunks: Chunks) -> tuple[int, int]:
    """Power of two that holds a chunk, and warps for 16 elements a thread.

    Raises:
        ValueError: the chunk is too long for one program.
    """
    block = max(64, triton.next_power_of_2(chunks.chunk))
    if block > MAX_BLOCK:
        raise ValueError(f"chunk={chunks.chunk}: expected at most {MAX_BLOCK} on a GPU; lower chunk and k together")
    return block, min(32, max(1, block // 512))


def topk(x: Tensor, chunks: Chunks, indices: Tensor, values: Tensor) -> bool:
    """Fill `indices` and `values`; False if an element is not finite."""
    block, warps = block_of(chunks)
    bad = torch.zeros(chunks.count, dtype=torch.int32, device=x.device)
    for first, count, n, k in chunks.parts():
        kept = slice(first * chunks.k, None)
        _topk_kernel[(count,)](
            x[first * chunks.chunk :], indices[kept], values[kept], bad[first:], n, k, block, num_warps=warps
        )
    return not bool(bad.any())


def delta_topk(
    old: Tensor,
    new: Tensor | None,
    error: Tensor,
    beta: float,
    chunks: Chunks,
    bits: int,
    indices: Tensor,
    codes: Tensor,
    scales: Tensor,
) -> bool:
    """Fill the outputs and update `error`; False if a sum is not finite."""
    block, warps = block_of(chunks)
    bad = torch.zeros(chunks.count, dtype=torch.int32, device=old.device)
    values = torch.empty(chunks.kept, device=old.device)
    second = old if new is None else new
    for first, count, n, k in chunks.parts():
        dense, kept = slice(first * chunks.chunk, None), slice(first * chunks.k, None)
        code = codes[first * chunk_code_bytes(chunks.k, bits) :]
        _delta_topk_kernel[(count,)](
            old[dense], second[dense], error[dense], beta, indices[kept], values[kept], code, scales[first:],
            bad[first:], n, k, chunk_code_bytes(k, bits), new is not None, bits, block, keep_block(chunks),
            num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return not bool(bad.any())
