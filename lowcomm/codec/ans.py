"""Asymmetric numeral systems behind a codec: each byte by its frequency.

Duda, arXiv 1311.2540, through constriction (Bamler, arXiv 2201.01741).

    bytes -> table and 32-bit words of about -log2 p(b) bits for each byte b, if that is shorter and the link slow
    enough (`Stage.pays`)

Shapes: the body of any payload; table: uint16 frequencies of the bytes that occur, at most 1026 B.
Cost: the order-0 entropy of the bytes plus the table, and at most 72 B more than without.
Raises: ConfigError where constriction is missing; PayloadError for bytes that it can't have made.
Deviates: one static table per payload.
Reduces to: the identity, always: it is lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowcomm.codec import wire
from lowcomm.codec.entropy import decode_symbols, encode_symbols, require_constriction
from lowcomm.codec.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Ans(Stage):
    """ANS over bytes: as small as their entropy, slower than Zstd."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.ANS
    pack_bytes_per_s: ClassVar[float] = 2.5e7

    def pack(self, raw: bytes) -> bytes:
        return encode_symbols(np.frombuffer(raw, np.uint8), "ans")

    def unpack(self, packed: bytes, raw_bytes: int) -> bytes:
        return decode_symbols(packed, raw_bytes, 256, "ans").astype(np.uint8).tobytes()

    def check(self) -> None:
        self.check_link()
        require_constriction()
