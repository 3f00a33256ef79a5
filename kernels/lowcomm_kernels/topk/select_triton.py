"""Exact choice of the k largest magnitudes of one chunk, for Triton kernels.

Bisection on the integers of the magnitudes: first on the maxima over groups of eight, which bound the k-th largest from
below, then on all, from that bound. `tl.sort` and `tl.topk` would do far more work.
"""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def magnitude_keys(x, inside):
    """int32 keys that order as |x| does; -1 outside the chunk."""
    return tl.where(inside, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)


@triton.jit
def _bisect(keys, k, low, high):
    """The k-th largest key, or a smaller bound that exactly k keys reach. `low` is reached by k keys, `high` is not."""
    while high - low > 1:
        middle = low + (high - low) // 2
        count = tl.sum((keys >= middle).to(tl.int32), axis=0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count == k, middle + 1, tl.where(count > k, high, middle))
    return low


@triton.jit
def select(keys, k, BLOCK: tl.constexpr):  # noqa: N803
    """Which keys (int32 [BLOCK]) are taken, the place of each taken one among them, and the largest key."""
    maxima = tl.max(tl.reshape(keys, (BLOCK // 8, 8)), axis=1)
    top = tl.max(maxima, axis=0)
    above = tl.minimum(top, INFINITY) + 1
    bound = _bisect(maxima, k, top * 0, above)
    least = _bisect(keys, k, bound, above)
    greater = (keys > least).to(tl.int32)
    equal = (keys == least).to(tl.int32)
    ties = k - tl.sum(greater, axis=0)
    # Both counts in one scan: the larger ones in the high half, the equal ones in the low half.
    running = tl.cumsum((greater << 16) | equal, axis=0)
    ahead = running & 0xFFFF
    take = (greater > 0) | ((equal > 0) & (ahead <= ties))
    return take, (running >> 16) + tl.minimum(ahead, ties) - 1, top
