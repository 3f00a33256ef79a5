"""Draws that are equal on all machines: a generator of random numbers from words."""

from __future__ import annotations

import hashlib
import random
from collections.abc import MutableSequence


def generator(*words: object) -> random.Random:
    """Of the Mersenne twister only `random()` is used, whose values Python promises not to change."""
    text = " ".join(str(word) for word in ("lowcomm", *words)).encode()
    return random.Random(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def below(draws: random.Random, limit: int) -> int:
    """A whole number from 0 to limit - 1."""
    return min(limit - 1, int(draws.random() * limit))


def shuffle(draws: random.Random, items: MutableSequence[int]) -> None:
    """Fisher and Yates, in place."""
    for i in range(len(items) - 1, 0, -1):
        j = below(draws, i + 1)
        items[i], items[j] = items[j], items[i]
