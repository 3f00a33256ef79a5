"""Zstandard behind a codec.

Collet and Kucherawy, Zstandard, RFC 8878.

    bytes -> zstd(bytes), if that is shorter and the link slow enough (`Stage.pays`)

Shapes: the body of any payload. Cost: what zstd makes of it and at most 72 B more than without; int8 of Gaussian values
goes to about 7.5 bits, int4 to 3.3, Elias-Fano and 2-bit codes hardly shrink.
Raises: ConfigError where zstandard is missing; PayloadError for bytes that are none of its own or would get longer than
the codec's shapes allow (checked before anything is allocated).
Deviates: no checksum, since the payload has one.
Reduces to: the identity, always: it is lossless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lowcomm.codec import wire
from lowcomm.codec.stage import Stage
from lowcomm.types import ConfigError, PayloadError, require


@dataclass(frozen=True, kw_only=True)
class Zstd(Stage):
    """Zstandard: 0.5 GB/s at level 1."""

    level: int = 1
    """1 (fast) to 22 (small)."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.ZSTD
    pack_bytes_per_s: ClassVar[float] = 4e8

    def pack(self, raw: bytes) -> bytes:
        zstd = _zstandard()
        return zstd.ZstdCompressor(level=self.level, write_checksum=False).compress(raw)

    def unpack(self, packed: bytes, raw_bytes: int) -> bytes:
        zstd = _zstandard()
        try:
            if zstd.frame_content_size(packed) != raw_bytes:
                raise PayloadError(f"a packed part does not unpack to the {raw_bytes} bytes that its header says")
            raw = zstd.ZstdDecompressor().decompress(packed, max_output_size=raw_bytes, allow_extra_data=False)
        except zstd.ZstdError as error:
            raise PayloadError("a packed part of the payload is no Zstandard frame") from error
        if len(raw) != raw_bytes:
            raise PayloadError(f"a packed part unpacks to {len(raw)} bytes, expected {raw_bytes}")
        return raw

    def check(self) -> None:
        self.check_link()
        require(1 <= self.level <= 22, "codec.stage.level", self.level, "1 to 22", "1 is fast")
        _zstandard()


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError("zstandard is missing. Fix: pip install 'lowcomm[codecs]'") from error
    return zstandard
