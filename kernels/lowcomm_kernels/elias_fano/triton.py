"""Triton form of the Elias-Fano code; one program for each chunk. The specification is in `__init__.py`."""

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.elias_fano.layout import low_bits, section_bytes
from lowcomm_kernels.topk.layout import Chunks


@triton.jit
def _upper_bytes(place, inside, UPPER: tl.constexpr):  # noqa: N803
    """int32 [UPPER] bytes in which the bits `place` are set (each at most once)."""
    # The histogram has one bin more than any bit, for entries that do not count.
    bits = tl.histogram(tl.where(inside, place, 8 * UPPER), 16 * UPPER)
    flags = tl.reshape(bits, (2 * UPPER, 8)) << tl.arange(0, 8)[None, :]
    return tl.sum(flags, axis=1)


@triton.jit
def _encode_kernel(
    indices, packed, bad, k_stride, n, k, low, low_size, size, first,
    KEEP: tl.constexpr, LOW: tl.constexpr, UPPER: tl.constexpr,  # noqa: N803
):  # fmt: skip
    c = first + tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, KEEP)
    row = indices + c * k_stride
    index = tl.load(row + entry, mask=entry < k, other=0).to(tl.int32)
    before = tl.load(row + entry - 1, mask=(entry < k) & (entry > 0), other=0).to(tl.int32)
    wrong = (entry < k) & ((index >= n) | ((entry > 0) & (index <= before)))
    tl.store(bad + c, tl.max(wrong.to(tl.int32), axis=0))
    code = packed + tl.program_id(0).to(tl.int64) * size
    bit = tl.arange(0, 8 * LOW)
    owner = bit // tl.maximum(low, 1)
    part = tl.load(row + owner, mask=owner < k, other=0).to(tl.int32)
    part = tl.where((owner < k) & (low > 0), (part >> (bit % tl.maximum(low, 1))) & 1, 0)
    lower = tl.sum(tl.reshape(part, (LOW, 8)) << tl.arange(0, 8)[None, :], axis=1)
    byte = tl.arange(0, LOW)
    tl.store(code + byte, lower.to(tl.uint8), mask=byte < low_size)
    upper = _upper_bytes((index >> low) + entry, (entry < k) & (wrong == 0), UPPER)
    byte = tl.arange(0, 2 * UPPER)
    tl.store(code + low_size + byte, upper.to(tl.uint8), mask=low_size + byte < size)


@triton.jit
def _decode_kernel(
    packed, indices, bad, k_stride, n, k, low, low_size, size, first,
    KEEP: tl.constexpr, UPPER: tl.constexpr,  # noqa: N803
):  # fmt: skip
    c = first + tl.program_id(0).to(tl.int64)
    code = packed + tl.program_id(0).to(tl.int64) * size
    row = indices + c * k_stride
    bit = tl.arange(0, 8 * UPPER)
    byte = low_size + bit // 8
    flag = (tl.load(code + byte, mask=byte < size, other=0).to(tl.int32) >> (bit % 8)) & 1
    rank = tl.cumsum(flag, axis=0) - 1
    found = tl.sum(flag, axis=0)
    high = (bit - rank) << low
    # Too large ones are caught here because the 16-bit store would cut them to a legal index.
    wrong = tl.max(((flag > 0) & (high >= n)).to(tl.int32), axis=0) | (found != k).to(tl.int32)
    tl.store(row + rank, high.to(tl.uint16), mask=(flag > 0) & (rank < k))
    tl.debug_barrier()  # the upper parts, written by other threads of this program, are read back
    entry = tl.arange(0, KEEP)
    live = (entry < k) & (entry < found)
    start = entry * low
    at = start // 8
    three = tl.load(code + at, mask=live & (at < size), other=0).to(tl.int32)
    three |= tl.load(code + at + 1, mask=live & (at + 1 < size), other=0).to(tl.int32) << 8
    three |= tl.load(code + at + 2, mask=live & (at + 2 < size), other=0).to(tl.int32) << 16
    index = tl.load(row + entry, mask=live, other=0).to(tl.int32) | ((three >> (start % 8)) & ((1 << low) - 1))
    tl.debug_barrier()
    tl.store(row + entry, index.to(tl.uint16), mask=live)
    tl.debug_barrier()
    before = tl.load(row + entry - 1, mask=live & (entry > 0), other=0).to(tl.int32)
    wrong |= tl.max((live & ((index >= n) | ((entry > 0) & (index <= before)))).to(tl.int32), axis=0)
    used = (k * low) % 8
    rest = tl.load(code + low_size - 1, mask=used > 0, other=0).to(tl.int32) >> used
    wrong |= ((used > 0) & (rest != 0)).to(tl.int32)
    tl.store(bad + c, wrong)


def _shape(n: int, k: int) -> tuple[tuple[int, ...], int, int, int]:
    """(n, k, low, low bytes, bytes) and the powers of two that hold the entries and the bytes of both sections."""
    low_size, upper_size = section_bytes(n, k)
    shape = (n, k, low_bits(n, k), low_size, low_size + upper_size)
    power = triton.next_power_of_2
    return shape, max(8, power(k)), max(8, power(low_size)), max(8, power(upper_size))


def _first_bad(bad: Tensor) -> int | None:
    return int(bad.argmax()) if bool(bad.any()) else None


def encode(indices: Tensor, chunks: Chunks, packed: Tensor) -> int | None:
    """Fill `packed`; the first chunk whose indices are not valid, or None."""
    bad = torch.zeros(chunks.count, dtype=torch.int32, device=indices.device)
    at = 0
    for first, count, n, k in chunks.parts():
        shape, keep, low, upper = _shape(n, k)
        _encode_kernel[(count,)](
            indices, packed[at:], bad, chunks.k, *shape, first, keep, low, upper, num_warps=1 if keep <= 64 else 4
        )
        at += count * shape[-1]
    return _first_bad(bad)


def decode(packed: Tensor, chunks: Chunks, indices: Tensor) -> int | None:
    """Fill `indices`; the first chunk that is malformed, or None."""
    bad = torch.zeros(chunks.count, dtype=torch.int32, device=packed.device)
    at = 0
    for first, count, n, k in chunks.parts():
        shape, keep, _, upper = _shape(n, k)
        _decode_kernel[(count,)](
            packed[at:], indices, bad, chunks.k, *shape, first, keep, upper, num_warps=1 if keep <= 64 else 4
        )
        at += count * shape[-1]
    return _first_bad(bad)
