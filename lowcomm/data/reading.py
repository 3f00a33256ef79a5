"""Reads local files as people have them: compressed, with a byte order mark, in UTF-16."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

from lowcomm.data.errors import bad, need, one_line

_BZIP2 = b"BZh"
_BZIP2_BLOCK = b"1AY&SY"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks of what is not UTF-8; the longer ones first, as they begin like the shorter ones."""


def read_bytes(path: Path) -> bytes:
    """The content of a file: unpacked (gzip, bzip2, xz, zstd), without a byte order mark, UTF-16 and UTF-32 as UTF-8.

    Whether the rest is UTF-8 is not looked at. Raises ConfigError for a file that cannot be read or unpacked, or that
    holds a NUL byte: UTF-16 without its mark is valid UTF-8 where it is ASCII, and would train on every second byte.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise bad("source.glob", str(path), "readable files", f"{error.strerror}: allow or remove the file") from error
    unpack = _unpacker(path, raw)
    if unpack is not None:
        try:
            raw = unpack(raw)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            fix = f"download or compress it again ({one_line(error)})"
            raise bad("source.glob", str(path), "compressed files that are whole", fix) from error
    text = _without_mark(path, raw)
    if b"\0" in text:
        fix = f"byte {text.index(0)} is NUL: a binary file, or UTF-16 without its mark (iconv -f UTF-16LE -t UTF-8)"
        raise bad("source.glob", str(path), "text files", f"{fix}: convert it or narrow the glob")
    return text


def _unpacker(path: Path, raw: bytes) -> Callable[[bytes], bytes] | None:
    """By the first bytes, whatever the file is called; None: it is not compressed."""
    if raw.startswith(b"\x1f\x8b"):
        return gzip.decompress
    if raw.startswith(_BZIP2) and raw[4:10] == _BZIP2_BLOCK:
        return bz2.decompress
    if raw.startswith(b"\xfd7zXZ\x00"):
        return lzma.decompress
    if raw.startswith(b"\x28\xb5\x2f\xfd"):
        return _unpack_zstd
    if raw.startswith((b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")):
        raise bad("source.glob", str(path), "text, or one compressed file", "it is an archive: unpack it first")
    return None


def _unpack_zstd(raw: bytes) -> bytes:
    zstandard = need("zstandard", "codecs")
    parts: list[bytes] = []
    while raw:  # frame by frame
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(raw))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if not frame.eof:
            raise ValueError("it is cut short")
        raw = frame.unused_data
    return b"".join(parts)


def _without_mark(path: Path, raw: bytes) -> bytes:
    if raw.startswith(codecs.BOM_UTF8):
        return raw[len(codecs.BOM_UTF8) :]
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            try:
                return raw.decode(encoding).encode("utf-8")
            except UnicodeError as error:
                fix = f"it begins like {encoding.upper()} and is not ({one_line(error)}): convert it to UTF-8"
                raise bad("source.glob", str(path), "UTF-8 text", fix) from error
    return raw
