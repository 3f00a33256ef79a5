"""Bucketing: a rule sees means of small groups of islands, drawn anew in each round.

Karimireddy, He, Jaggi, Byzantine-robust learning on heterogeneous datasets via bucketing, ICLR 2022, arXiv 2006.09365.

    Y_a = sum_{i in B_a} p_i D_i / sum_{i in B_a} p_i,    B: the islands in random order, cut into groups of s

s: `size`; p_i: weights; Y_a weighs as its islands do. Honest means differ less than honest Deltas, but f faulty islands
may spoil f of the ceil(K / s) groups: the rule after it must bear as many.
Shapes and dtypes: as in `mixing.py`. Bytes: none beside the rule's.
Raises: ConfigError for a size below 1 or fewer groups than the rule needs.
Deviates: the order comes from the round's seed, which islands know beforehand: it is no secret from an attacker.
Reduces to: nothing mixed for s = 1; the mean for s = K.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.aggregate.mixing import Matrix, Mixing
from lowcomm.types import Round, require


@dataclass(frozen=True, kw_only=True)
class Bucketing(Mixing):
    """Means of `size` islands each."""

    size: int = 2
    """s: islands in a group; the last one may have fewer."""

    @property
    def fewest(self) -> int:
        return 1

    def outputs(self, count: int) -> int:
        return -(-count // self.size)

    def check(self) -> None:
        whole = isinstance(self.size, int) and self.size >= 1
        require(whole, "sync.aggregator.first.size", self.size, "a whole number, 1 or more", "2 is usual")

    def matrix(self, gram: Matrix, weights: Sequence[float], round: Round) -> tuple[Matrix, list[float]]:
        count = len(weights)
        order = sorted(range(count), key=lambda i: _draw(round, i)) if self.size > 1 else list(range(count))
        groups = [order[start : start + self.size] for start in range(0, count, self.size)]
        shares = [math.fsum(weights[i] for i in group) for group in groups]
        rows = [
            [weights[i] / share if i in group else 0.0 for i in range(count)]
            for group, share in zip(groups, shares, strict=True)
        ]
        return rows, shares


def _draw(round: Round, place: int) -> bytes:
    """A number that is random by round and place, and equal on every island."""
    said = f"{round.seed} {round.fragments} {place}".encode()
    return hashlib.blake2b(said, digest_size=8, person=b"bucketing").digest()
