"""The last link of a chain: bytes to fewer bytes, where the link is slow enough for it to pay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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

    link_bytes_per_s: float | None = None
    """Measured speed of the slowest link: bytes go as they are where packing them takes longer than it saves.
    None: not measured, always pack."""

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

    def pays(self, raw: bytes) -> bool:
        """Whether the link takes longer for what would be saved than packing takes for all."""
        if self.link_bytes_per_s is None:
            return True
        saved = len(raw) * (1 - foretold_share(raw))
        return saved / self.link_bytes_per_s > len(raw) / self.pack_bytes_per_s

    def check_link(self) -> None:
        """Raise ConfigError for a speed that is none."""
        speed = self.link_bytes_per_s
        ok = speed is None or 0 < speed < float("inf")
        fix = "take the figure of `lowcomm doctor`, or leave it out"
        require(ok, "codec.stage.link_bytes_per_s", speed, "a finite number above 0, or None", fix)

    def __ror__(self, first: Codec) -> Codec:
        from lowcomm.codec.chain import join

        return join(first, self)


def foretold_share(raw: bytes) -> float:
    """Entropy of a sample's bytes as a share of 8 bits: 1 is incompressible."""
    data = np.frombuffer(raw, np.uint8)
    if len(data) == 0:
        return 1.0
    counts = np.bincount(data[:: max(1, len(data) // SAMPLE_BYTES)], minlength=256)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) / 8
