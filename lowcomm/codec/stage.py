"""The last link of a chain: bytes to fewer bytes, where the link is slow enough for it to pay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lowcomm.codec import wire
from lowcomm.types import require

if TYPE_CHECKING:
    from lowcomm.codec.base import Codec

SAMPLE_BYTES = 1 << 16
"""Bytes, evenly spread, from whose histogram the saving is foretold."""


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """Base of the lossless entropy stages, which follow a codec: `Int8() | Zstd()`."""

    link_bytes_per_s: float | Literal["measured"] | None = None
    """Speed of the link: bytes go as they are where packing them takes longer than it saves. "measured": that of this
    process's latest large exchanges (it packs until there is one, and always in a simulation). None: always pack."""

    belongs: ClassVar[str] = "put it behind a codec, as in Int8() | Zstd()"
    """Said where one stands in the place of a codec."""
    codec_id: ClassVar[wire.CodecId]
    pack_bytes_per_s: ClassVar[float]
    """Speed of packing and unpacking one after the other, measured on one core with int8 of Gaussian values."""

    @abstractmethod
    def pack(self, raw: bytes) -> bytes:
        """Fewer bytes, if all goes well."""

    @abstractmethod
    def unpack(self, packed: bytes, raw_bytes: int) -> bytes:
        """Exactly `raw_bytes` of them. Raises PayloadError, and never makes more than that."""

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a setting out of range or a library that is missing."""

    def pays(self, raw: bytes, measured_bytes_per_s: float | None = None) -> bool:
        """Whether the link takes longer for what would be saved than packing takes for all."""
        speed = measured_bytes_per_s if self.link_bytes_per_s == "measured" else self.link_bytes_per_s
        if speed is None:
            return True
        saved = len(raw) * (1 - expected_share(raw))
        return saved / speed > len(raw) / self.pack_bytes_per_s

    def check_link(self) -> None:
        """Raise ConfigError for a speed that is none."""
        speed = self.link_bytes_per_s
        ok = speed is None or speed == "measured" or (not isinstance(speed, str) and 0 < speed < float("inf"))
        fix = "take the figure of `lowcomm doctor`, or leave it out"
        require(ok, "codec.stage.link_bytes_per_s", speed, "a finite number above 0, measured, or None", fix)

    def __ror__(self, first: Codec) -> Codec:
        from lowcomm.codec.chain import join

        return join(first, self)


def expected_share(raw: bytes) -> float:
    """Entropy of a sample's bytes as a share of 8 bits: 1 is incompressible."""
    data = np.frombuffer(raw, np.uint8)
    if len(data) == 0:
        return 1.0
    counts = np.bincount(data[:: max(1, len(data) // SAMPLE_BYTES)], minlength=256)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) / 8
