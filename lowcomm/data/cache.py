"""Cache files that several processes may write at once and that are checked before use."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np

_DIGEST_BYTES = 32


def read(path: Path) -> bytes | None:
    """The payload, or None if the file is missing, cut or changed: the caller builds it again."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    payload, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    return payload if sha256(payload).digest() == digest else None


def write(path: Path, payload: bytes) -> None:
    """Payload and its SHA-256 by a temporary file and rename, so that no reader sees a half-written one.

    A cache that cannot be written (read-only home, full disk) costs time on the next run, not this run.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload + sha256(payload).digest())
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def read_arrays(path: Path, count: int) -> list[np.ndarray] | None:
    """`count` arrays, or None if the file is not usable. Never unpickles."""
    payload = read(path)
    if payload is None:
        return None
    file = io.BytesIO(payload)
    try:
        return [np.load(file, allow_pickle=False) for _ in range(count)]
    except (ValueError, EOFError, OSError):
        return None


def write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    """The arrays one after the other in NumPy's own format."""
    file = io.BytesIO()
    for array in arrays:
        np.save(file, array, allow_pickle=False)
    write(path, file.getvalue())
