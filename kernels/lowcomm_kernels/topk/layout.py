"""Where the kept entries of a flat tensor lie: chunks, how many entries each keeps, and how many bytes they take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

MAX_CHUNK = 65536
"""An index within a chunk has 16 bits."""
VALUE_BITS = (2, 8, 16)


@dataclass(frozen=True)
class Chunks:
    """`numel` elements cut into chunks of `chunk`, of which each keeps `k`; the last chunk may be short.

    A short chunk of `n` elements keeps `max(1, floor(k * n / chunk + 1/2))` entries, so every chunk keeps at
    least one and the density stays the same. Everything that is sent has a size that follows from these three numbers.

    Raises:
        ValueError: numel < 0, chunk outside [1, 65536], k outside [1, chunk].
    """

    numel: int
    chunk: int = 4096
    k: int = 64

    def __post_init__(self) -> None:
        if self.numel < 0:
            raise ValueError(f"numel={self.numel}: expected numel >= 0")
        if not 1 <= self.chunk <= MAX_CHUNK:
            raise ValueError(f"chunk={self.chunk}: expected 1 <= chunk <= {MAX_CHUNK}; indices have 16 bits")
        if not 1 <= self.k <= self.chunk:
            raise ValueError(f"k={self.k}: expected 1 <= k <= chunk ({self.chunk}); lower k or raise chunk")

    @cached_property
    def full(self) -> int:
        """Chunks with all `chunk` elements."""
        return self.numel // self.chunk

    @cached_property
    def tail(self) -> int:
        """Elements of the short last chunk; 0 if there is none."""
        return self.numel % self.chunk

    @cached_property
    def tail_k(self) -> int:
        return max(1, (2 * self.k * self.tail + self.chunk) // (2 * self.chunk)) if self.tail else 0

    @cached_property
    def count(self) -> int:
        return self.full + (self.tail > 0)

    @cached_property
    def kept(self) -> int:
        """Entries that are kept in all."""
        return self.full * self.k + self.tail_k

    def parts(self) -> list[tuple[int, int, int, int]]:
        """(first chunk, chunks, elements in each, kept in each): the full chunks, then the short one, if any."""
        found = [(0, self.full, self.chunk, self.k)] if self.full else []
        if self.tail:
            found.append((self.full, 1, self.tail, self.tail_k))
        return found

    def code_bytes(self, bits: int) -> int:
        """Bytes of all coded values; each chunk starts at a byte."""
        return self.full * chunk_code_bytes(self.k, bits) + chunk_code_bytes(self.tail_k, bits)

    def scale_count(self, bits: int) -> int:
        """16-bit scales: one for each chunk, none for 16-bit values."""
        return 0 if bits == 16 else self.count


def chunk_code_bytes(k: int, bits: int) -> int:
    """Bytes of the coded values of a chunk that keeps `k`."""
    check_bits(bits)
    return -(-k * bits // 8)


def check_bits(bits: int) -> None:
    if bits not in VALUE_BITS:
        raise ValueError(f"bits={bits}: expected one of {VALUE_BITS}")
