"""Sizes of the Elias-Fano code."""

from __future__ import annotations

from lowcomm_kernels.topk.layout import Chunks


def low_bits(n: int, k: int) -> int:
    """floor(log2(n / k)): how many low bits of an index are stored as they are (n >= k >= 1)."""
    return (n // k).bit_length() - 1


def section_bytes(n: int, k: int) -> tuple[int, int]:
    """Bytes of the low bits and of the upper bits of a chunk of n elements that keeps k."""
    low = low_bits(n, k)
    return -(-k * low // 8), -(-(k + (n >> low)) // 8)


def chunk_bytes(n: int, k: int) -> int:
    """Bytes of a chunk of n elements that keeps k."""
    return sum(section_bytes(n, k))


def packed_bytes(chunks: Chunks) -> int:
    """Bytes of all chunks."""
    return sum(count * chunk_bytes(n, k) for _, count, n, k in chunks.parts())
