"""Merkle trees over SHA-256, and the search for the first leaf in which two of them differ.

Leaves and inner nodes are hashed apart (RFC 6962), so that no node passes for a leaf. Of n leaves the left subtree has
as many as the largest power of two below n. The search compares one pair of nodes after the other from the root down:
where the left ones differ it goes left, else right, so that whatever is left of the leaf that it ends at is equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

LEAF, NODE = b"\x00", b"\x01"


def root_of(leaves: Sequence[bytes]) -> bytes:
    """32 bytes over the leaves (bytes of any length), of which there is one or more."""
    if len(leaves) == 1:
        return sha256(LEAF + leaves[0]).digest()
    half = _half(len(leaves))
    return sha256(NODE + root_of(leaves[:half]) + root_of(leaves[half:])).digest()


def first_difference(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[int | None, int]:
    """Index of the first leaf that differs, None if none does, and how many pairs of hashes were compared.

    Raises ValueError unless both have as many leaves.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} leaves against {len(theirs)}")
    compared = 1
    if root_of(ours) == root_of(theirs):
        return None, compared
    start, stop = 0, len(ours)
    while stop - start > 1:
        middle = start + _half(stop - start)
        compared += 1
        if root_of(ours[start:middle]) != root_of(theirs[start:middle]):
            stop = middle
        else:
            start = middle
    return start, compared


def link(before: bytes, root: bytes) -> bytes:
    """A chain's next value: equal only if all before are."""
    return sha256(before + root).digest()


def first_break(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[int | None, int]:
    """Index of the first value in which two chains of one length differ, None if none does; pairs compared.

    By bisection: a value of a chain stands for all before it.
    """
    compared = 1
    if not ours or ours[-1] == theirs[-1]:
        return None, compared
    low, high = 0, len(ours) - 1
    while low < high:
        middle = (low + high) // 2
        compared += 1
        if ours[middle] != theirs[middle]:
            high = middle
        else:
            low = middle + 1
    return low, compared


def _half(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1
