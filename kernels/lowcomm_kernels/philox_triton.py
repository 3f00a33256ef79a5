"""Philox-4x32-10 for Triton kernels; the scheme of words and halves is in `philox.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def random16_of(counter, seed):
    """int32 [a, b, 2, 2, 2] in [0, 65536) for int64 counters [a, b]: a reshape to [a, 8 b] is in element order."""
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero, zero)
    # join() adds a last axis, so the outer axis of the four words is joined first and their halves come last.
    low16 = tl.join(tl.join(w0 & 0xFFFF, w2 & 0xFFFF), tl.join(w1 & 0xFFFF, w3 & 0xFFFF))
    high16 = tl.join(tl.join(w0 >> 16, w2 >> 16), tl.join(w1 >> 16, w3 >> 16))
    return tl.join(low16, high16).to(tl.int32)


@triton.jit
def random16(first_counter, seed, COUNTERS: tl.constexpr):  # noqa: N803
    """int32 [8 * COUNTERS] in [0, 65536): the bits of elements `8 * first_counter` onward (int64 scalars)."""
    counter = (first_counter + tl.arange(0, COUNTERS))[None, :]
    return tl.reshape(random16_of(counter, seed), (8 * COUNTERS,))
