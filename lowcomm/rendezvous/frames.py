"""Frames of the rendezvous: fields behind lengths, sealed with HMAC-SHA256, and the proofs that open a connection.

Each side of a new connection sends a nonce and proves that it knows the run's secret; neither shows it. From both
nonces follows the key of the connection, under which every frame has a tag with its direction and number: a frame that
was changed, sent again or sent back is refused. Nothing is encrypted, and nothing that is read can be more than data.

    server: MAGIC, nonce                     client: nonce, proof(client)                server: proof(server)
    then in both directions: length (4 bytes, big-endian), fields, tag
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from lowcomm.types import ConfigError, PayloadError

MAGIC = b"lowcomm rendezvous 1\n"
NONCE_BYTES = 32
TAG_BYTES = 32
LENGTH_BYTES = 4
MOST_BYTES = 1 << 23
"""Of a frame: what ranks tell each other here are addresses."""
FEWEST_SECRET_CHARACTERS = 32


def check_secret(text: str, source: str) -> bytes:
    """The secret as bytes, without white space around it. Raises ConfigError. source: where it comes from."""
    secret = text.strip()
    if len(secret) < FEWEST_SECRET_CHARACTERS or not secret.isascii() or len(secret.split()) != 1:
        raise ConfigError(
            f"the run's secret in {source} is not allowed: one word of at least {FEWEST_SECRET_CHARACTERS} ASCII "
            "characters, equal on all nodes. Fix: (umask 077; head -c 32 /dev/urandom | base64 > FILE), and copy it"
        )
    return secret.encode("ascii")


def proof(secret: bytes, who: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """What only one who knows the secret can answer to these nonces. who: client, server, or session for the key."""
    return hmac.new(secret, b"\0".join((MAGIC, who, server_nonce, client_nonce)), hashlib.sha256).digest()


def same(given: bytes, expected: bytes) -> bool:
    """Equal, in a time that tells nothing."""
    return hmac.compare_digest(given, expected)


class Seal:
    """Tags of one direction of a connection, in their order."""

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._key, self._direction, self._count = key, direction, 0

    def _tag(self, body: bytes) -> bytes:
        number = self._count.to_bytes(8, "big")
        self._count += 1
        return hmac.new(self._key, self._direction + number + body, hashlib.sha256).digest()

    def seal(self, fields: Sequence[bytes]) -> bytes:
        """A frame. Raises PayloadError for one that is too long."""
        body = pack(fields)
        check_length(len(body))
        return len(body).to_bytes(LENGTH_BYTES, "big") + body + self._tag(body)

    def open(self, body: bytes, tag: bytes) -> list[bytes]:
        """The fields. Raises PayloadError if the next frame of this direction is another one."""
        if not same(tag, self._tag(body)):
            raise PayloadError("a frame of the rendezvous was changed on its way")
        return unpack(body)


def check_length(length: int) -> None:
    """Raise PayloadError before anything is allocated for a frame of this length."""
    if length > MOST_BYTES:
        raise PayloadError(f"a frame of the rendezvous has {length} bytes: at most {MOST_BYTES} are allowed")


def pack(fields: Sequence[bytes]) -> bytes:
    """Fields as one string of bytes."""
    return b"".join(len(field).to_bytes(LENGTH_BYTES, "big") + field for field in fields)


def unpack(body: bytes) -> list[bytes]:
    """The fields of `pack`. Raises PayloadError."""
    fields: list[bytes] = []
    at = 0
    while at < len(body):
        end = at + LENGTH_BYTES
        length = int.from_bytes(body[at:end], "big")
        if end + length > len(body):
            raise PayloadError("a frame of the rendezvous ends inside a field")
        fields.append(body[end : end + length])
        at = end + length
    return fields
