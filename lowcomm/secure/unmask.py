"""What whoever adds up masked vectors takes off the sum, from the shares of those that are left."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lowcomm.secure import shamir
from lowcomm.secure.masks import mask
from lowcomm.secure.party import pair_seed
from lowcomm.types import SyncError


def masks_left(
    adverts: Mapping[int, bytes],
    survivors: Collection[int],
    shares: Mapping[int, Mapping[int, bytes]],
    threshold: int,
    context: bytes,
    start: int,
    like: np.ndarray,
) -> np.ndarray:
    """The masks in the sum of the survivors' masked vectors, for entries from `start` on, as many as `like` has.

    adverts: of all parties that dealt shares; shares: by holder, then by party. Raises SyncError if a party has fewer
    than `threshold` shares.
    """
    total = np.zeros_like(like)
    for k in adverts:
        secret = _secret(k, shares, threshold)
        if k in survivors:
            total = total + mask(secret, start, len(like), like.dtype)
            continue
        private = X25519PrivateKey.from_private_bytes(secret)
        for j in survivors:  # they masked with a pair of which this party's half never came
            pair = mask(pair_seed(private, adverts[j], context), start, len(like), like.dtype)
            total = total + pair if j < k else total - pair
    return total


def _secret(party: int, shares: Mapping[int, Mapping[int, bytes]], threshold: int) -> bytes:
    found = {holder: given[party] for holder, given in shares.items() if party in given}
    secret = shamir.combine(dict(list(found.items())[:threshold])) if len(found) >= threshold else None
    if secret is None:
        raise SyncError(
            f"the masks of island {party} can't be taken off: {len(found)} shares came, {threshold} are needed. "
            "Nothing was committed."
        )
    return secret
