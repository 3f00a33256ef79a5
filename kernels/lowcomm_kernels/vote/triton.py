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

from lowcomm_kernels.blocks_triton import WARPS, Launch

_WORDS = 1024
_APPLY_BYTES = 256
"""Bytes of votes per program of the apply kernel: 2048 elements."""


@triton.jit
def _full_add(plane, carry):
    return plane ^ carry, plane & carry


@triton.jit
def _compare(plane, want, above, equal):
    above = tl.where(want == 0, above | (equal & plane), above)
    return above, tl.where(want == 0, equal ^ (equal & plane), equal & plane)


@triton.jit
def _load_row(words, step, row, place, size, MASKED: tl.constexpr):
    start = words + tl.cast(row, tl.int64) * step
    if MASKED:
        return tl.load(start + place, mask=place < size, other=0)
    return tl.load(start + place)


@triton.jit
def _majority(words, step, peers, tie_peer, place, size, MASKED: tl.constexpr):
    """Majority of the words at `place` over rows `step` words apart; integers of the words' own width."""
    tie = _load_row(words, step, tie_peer, place, size, MASKED)
    zero = tie & 0
    p0, p1, p2, p3 = zero, zero, zero, zero
    p4, p5, p6, p7 = zero, zero, zero, zero
    for w in range(peers):
        carry = _load_row(words, step, w, place, size, MASKED)
        p0, carry = _full_add(p0, carry)
        p1, carry = _full_add(p1, carry)
        p2, carry = _full_add(p2, carry)
        p3, carry = _full_add(p3, carry)
        p4, carry = _full_add(p4, carry)
        p5, carry = _full_add(p5, carry)
        p6, carry = _full_add(p6, carry)
        p7, carry = _full_add(p7, carry)
    half = peers // 2
    ones = (zero.to(tl.int32) - 1).to(zero.dtype)  # ~zero overflows on bytes in Triton 3.7's interpreter
    above, equal = _compare(p7, (half >> 7) & 1, zero, ones)
    above, equal = _compare(p6, (half >> 6) & 1, above, equal)
    above, equal = _compare(p5, (half >> 5) & 1, above, equal)
    above, equal = _compare(p4, (half >> 4) & 1, above, equal)
    above, equal = _compare(p3, (half >> 3) & 1, above, equal)
    above, equal = _compare(p2, (half >> 2) & 1, above, equal)
    above, equal = _compare(p1, (half >> 1) & 1, above, equal)
    above, equal = _compare(p0, half & 1, above, equal)
    return tl.where(peers % 2 == 0, above | (equal & tie), above)


@triton.jit
def vote_kernel(words, step, peers, tie_peer, out, size, first_tile, WORDS: tl.constexpr, MASKED: tl.constexpr):
    place = (first_tile + tl.program_id(0)).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    found = _majority(words, step, peers, tie_peer, place, size, MASKED)
    if MASKED:
        tl.store(out + place, found, mask=place < size)
    else:
        tl.store(out + place, found)


@triton.jit
def vote_apply_kernel(
    words, step, peers, tie_peer, target, n, size, move, first_tile, BYTES: tl.constexpr, MASKED: tl.constexpr
):
    first = (first_tile + tl.program_id(0)).to(tl.int64) * BYTES
    place = first + tl.arange(0, BYTES)
    byte = _majority(words, step, peers, tie_peer, place, size, MASKED).to(tl.int32)
    bit = tl.reshape((byte[:, None] >> tl.arange(0, 8)[None, :]) & 1, (8 * BYTES,))
    element = first * 8 + tl.arange(0, 8 * BYTES)
    if MASKED:
        v = tl.load(target + element, mask=element < n, other=0.0)
        tl.store(target + element, v + tl.where(bit != 0, move, -move), mask=element < n)
    else:
        v = tl.load(target + element)
        tl.store(target + element, v + tl.where(bit != 0, move, -move))


def _parts(size: int, full: int, tile: int) -> list[Launch]:
    """Full tiles, then the rest with masks: a mask on a size that is no multiple of 16 costs the wide accesses."""
    parts = [Launch(0, full // tile, False), Launch(full // tile, triton.cdiv(size, tile) - full // tile, True)]
    return [part for part in parts if part.programs]


def vote(words: Tensor, out: Tensor, *, tie_peer: int) -> None:
    """Fill `out`."""
    step, size = words.stride(0), out.numel()
    starts = (words.data_ptr(), out.data_ptr(), step, size)
    if all(start % 4 == 0 for start in starts):
        words, out, step, size = words.view(torch.int32), out.view(torch.int32), step // 4, size // 4
    for first, count, masked in _parts(size, size, _WORDS):
        vote_kernel[(count,)](
            words, step, words.shape[0], tie_peer, out, size, first, _WORDS, masked, num_warps=WARPS
        )  # fmt: skip


def vote_apply(words: Tensor, target: Tensor, *, step: float, tie_peer: int) -> None:
    """Move `target`."""
    size = words.shape[1]
    for first, count, masked in _parts(size, target.numel() // 8, _APPLY_BYTES):
        vote_apply_kernel[(count,)](
            words, words.stride(0), words.shape[0], tie_peer, target, target.numel(), size, step, first, _APPLY_BYTES,
            masked, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
