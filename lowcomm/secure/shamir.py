"""Shamir's secret sharing of 32 bytes over the field of integers modulo 2^256 + 297, a prime.

Shamir, How to share a secret, CACM 1979. The secret is a polynomial's value at 0; t of its other values tell it, t - 1
say nothing about it. The package cryptography has no such scheme.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """A share for each holder (numbers from 0), of which any `threshold` give the secret."""
    coefficients = [int.from_bytes(secret, "little"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares: dict[int, bytes] = {}
    for holder in holders:
        value = 0
        for c in reversed(coefficients):
            value = (value * (holder + 1) + c) % PRIME
        shares[holder] = value.to_bytes(SHARE_BYTES, "little")
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret from as many shares as the threshold says; None if they are of no secret."""
    total = 0
    for i, share in shares.items():
        numerator, denominator = 1, 1
        for j in shares:
            if j != i:
                numerator = numerator * (j + 1) % PRIME
                denominator = denominator * (j - i) % PRIME
        total += int.from_bytes(share, "little") * numerator * pow(denominator, -1, PRIME)
    total %= PRIME
    return total.to_bytes(SECRET_BYTES, "little") if total < 2 ** (8 * SECRET_BYTES) else None
