"""One party of one round of secure aggregation: four messages, in this order."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lowcomm.secure import shamir
from lowcomm.secure.masks import mask
from lowcomm.types import SyncError

KEY_BYTES = 32
ADVERT_BYTES = 2 * KEY_BYTES
SEALED_BYTES = 2 * shamir.SHARE_BYTES + 16


class Party:
    """Keys and seed of one party, new for every sum; `context` names the sum (round, fragment), equal for all."""

    def __init__(self, me: int, context: bytes) -> None:
        self.me, self.context = me, context
        self._sealing, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(32)
        self._adverts: dict[int, bytes] = {}
        self._held: dict[int, bytes] = {}
        """Shares that others gave this party: of the key, then of the seed."""
        self._told: frozenset[int] | None = None

    def advert(self) -> bytes:
        """Message 1, to all: two public keys."""
        return self._sealing.public_key().public_bytes_raw() + self._masking.public_key().public_bytes_raw()

    def deal(self, adverts: Mapping[int, bytes], threshold: int) -> dict[int, bytes]:
        """Message 2, by receiver: its share of this party's key and seed, sealed. adverts: of all, this one's too."""
        self._adverts = dict(adverts)
        keys = shamir.split(self._masking.private_bytes_raw(), list(adverts), threshold)
        seeds = shamir.split(self._seed, list(adverts), threshold)
        self._held[self.me] = keys[self.me] + seeds[self.me]
        return {k: self._cipher(k, self.me, k).encrypt(bytes(12), keys[k] + seeds[k], None) for k in self.others}

    def receive(self, sealed: Mapping[int, bytes]) -> list[int]:
        """Open what others dealt to this party; those whose message can't be opened."""
        broken: list[int] = []
        for k, message in sealed.items():
            try:
                self._held[k] = self._cipher(k, k, self.me).decrypt(bytes(12), message, None)
            except InvalidTag:
                broken.append(k)
        return broken

    def masked(self, values: np.ndarray) -> np.ndarray:
        """Message 3: unsigned integers, 1-D, with this party's masks on them."""
        total = values + mask(self._seed, 0, len(values), values.dtype)
        for k in self.others:
            own = mask(pair_seed(self._masking, self._adverts[k], self.context), 0, len(values), values.dtype)
            total = total + own if self.me < k else total - own
        return total

    def shares(self, survivors: Collection[int]) -> dict[int, bytes]:
        """Message 4: by party, a share of the seed of one that survived, of the key of one that dropped.

        Raises SyncError when asked again with other survivors: with both shares a contribution could be unmasked.
        """
        if self._told not in (None, frozenset(survivors)):
            raise SyncError("secure aggregation was asked for the shares of two different sets of survivors")
        self._told = frozenset(survivors)
        cut = shamir.SHARE_BYTES
        return {k: held[cut:] if k in self._told else held[:cut] for k, held in self._held.items()}

    @property
    def others(self) -> list[int]:
        """All parties but this one, once their adverts are there."""
        return [k for k in self._adverts if k != self.me]

    def _cipher(self, other: int, sender: int, receiver: int) -> ChaCha20Poly1305:
        secret = self._sealing.exchange(X25519PublicKey.from_public_bytes(self._adverts[other][:KEY_BYTES]))
        return ChaCha20Poly1305(_derive(secret, self.context + b" share %d %d" % (sender, receiver)))


def pair_seed(private: X25519PrivateKey, advert: bytes, context: bytes) -> bytes:
    """Seed of the mask of two parties, from one's private key and the other's advert."""
    secret = private.exchange(X25519PublicKey.from_public_bytes(advert[KEY_BYTES:]))
    return _derive(secret, context + b" mask")


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"lowcomm secure sum " + info).derive(secret)
