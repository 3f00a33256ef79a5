"""Philox-4x32-10 for Triton kernels; the scheme of words and halves is in `philox.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def random16(first_counter, seed, COUNTERS: tl.constexpr):  # noqa: N803
    """int32 [8 * COUNTERS] in [0, 65536): the bits of elements `8 * first_counter` onward (int64 scalars)."""
    counter = first_counter + tl.arange(0, COUNTERS)
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero, zero)
    # join() adds a last axis, so the halves are joined innermost and the words in bit-reversed order.
    even = tl.join(_halves(w0), _halves(w2))
    odd = tl.join(_halves(w1), _halves(w3))
    words = tl.join(even, odd)  # [COUNTERS, half, word // 2, word % 2]
    return tl.reshape(tl.permute(words, (0, 2, 3, 1)), (8 * COUNTERS,))


@triton.jit
def _halves(word):
    return tl.join((word & 0xFFFF).to(tl.int32), (word >> 16).to(tl.int32))
