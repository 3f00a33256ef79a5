"""GPU path: bit planes of the counts in registers, on 32-bit words where rows and length allow, else on bytes."""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.blocks_triton import WARPS

_WORDS = 1024
_APPLY_BYTES = 256
"""Bytes of votes per program of the apply kernel: 2048 elements."""


@triton.jit
def _full_add(plane, carry):
    return plane ^ carry, plane & carry


@triton.jit
def _compare(plane, want, above, equal):
    above = tl.where(want == 0, above | (equal & plane), above)
    return above, tl.where(want == 0, equal & ~plane, equal & plane)


@triton.jit
def _majority(words, step, peers, tie_peer, place, mask):
    """Majority of the words at `place` over rows `step` words apart; integers of the words' own width."""
    zero = tl.load(words + place, mask=mask, other=0) & 0
    p0, p1, p2, p3 = zero, zero, zero, zero
    p4, p5, p6, p7 = zero, zero, zero, zero
    for w in range(peers):
        carry = tl.load(words + tl.cast(w, tl.int64) * step + place, mask=mask, other=0)
        p0, carry = _full_add(p0, carry)
        p1, carry = _full_add(p1, carry)
        p2, carry = _full_add(p2, carry)
        p3, carry = _full_add(p3, carry)
        p4, carry = _full_add(p4, carry)
        p5, carry = _full_add(p5, carry)
        p6, carry = _full_add(p6, carry)
        p7, carry = _full_add(p7, carry)
    half = peers // 2
    above, equal = _compare(p7, (half >> 7) & 1, zero, ~zero)
    above, equal = _compare(p6, (half >> 6) & 1, above, equal)
    above, equal = _compare(p5, (half >> 5) & 1, above, equal)
    above, equal = _compare(p4, (half >> 4) & 1, above, equal)
    above, equal = _compare(p3, (half >> 3) & 1, above, equal)
    above, equal = _compare(p2, (half >> 2) & 1, above, equal)
    above, equal = _compare(p1, (half >> 1) & 1, above, equal)
    above, equal = _compare(p0, half & 1, above, equal)
    tie = tl.load(words + tl.cast(tie_peer, tl.int64) * step + place, mask=mask, other=0)
    return tl.where(peers % 2 == 0, above | (equal & tie), above)


@triton.jit
def vote_kernel(words, step, peers, tie_peer, out, size, WORDS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    mask = place < size
    tl.store(out + place, _majority(words, step, peers, tie_peer, place, mask), mask=mask)


@triton.jit
def vote_apply_kernel(words, step, peers, tie_peer, target, n, size, move, BYTES: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BYTES
    place = first + tl.arange(0, BYTES)
    byte = _majority(words, step, peers, tie_peer, place, place < size).to(tl.int32)
    bit = tl.reshape((byte[:, None] >> tl.arange(0, 8)[None, :]) & 1, (8 * BYTES,))
    element = first * 8 + tl.arange(0, 8 * BYTES)
    mask = element < n
    v = tl.load(target + element, mask=mask, other=0.0)
    tl.store(target + element, v + tl.where(bit != 0, move, -move), mask=mask)


def vote(words: Tensor, out: Tensor, *, tie_peer: int) -> None:
    """Fill `out`."""
    step, size = words.stride(0), out.numel()
    starts = (words.data_ptr(), out.data_ptr(), step, size)
    if all(start % 4 == 0 for start in starts):
        words, out, step, size = words.view(torch.int32), out.view(torch.int32), step // 4, size // 4
    vote_kernel[(triton.cdiv(size, _WORDS),)](words, step, words.shape[0], tie_peer, out, size, _WORDS, num_warps=WARPS)


def vote_apply(words: Tensor, target: Tensor, *, step: float, tie_peer: int) -> None:
    """Move `target`."""
    size = words.shape[1]
    vote_apply_kernel[(triton.cdiv(size, _APPLY_BYTES),)](
        words, words.stride(0), words.shape[0], tie_peer, target, target.numel(), size, step, _APPLY_BYTES,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
