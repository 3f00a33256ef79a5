"""Stand-ins for packages that a bare machine with a GPU may lack; import it before lowcomm.

Of lowcomm's packages only xxhash is needed at import by what benchmarks/gpu.py runs: digests that are compared between
islands. blake2b takes its place; it is slower, and rows say so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

MISSING: list[str] = []
"""Packages that were not there."""


class _Digest:
    """hashlib's blake2b under xxhash's names."""

    def __init__(self, size: int, data: Any = b"") -> None:
        self._state = hashlib.blake2b(digest_size=size)
        self.update(data)

    def update(self, data: Any) -> None:
        self._state.update(data)

    def digest(self) -> bytes:
        return self._state.digest()

    def intdigest(self) -> int:
        return int.from_bytes(self.digest(), "big")

    def hexdigest(self) -> str:
        return self._state.hexdigest()


def stand_in() -> ModuleType:
    """What of xxhash lowcomm uses."""
    made: Any = ModuleType("xxhash")
    for name, size in (("xxh3_64", 8), ("xxh3_128", 16)):
        setattr(made, name, lambda data=b"", s=size: _Digest(s, data))
        setattr(made, f"{name}_digest", lambda data, s=size: _Digest(s, data).digest())
        setattr(made, f"{name}_intdigest", lambda data, s=size: _Digest(s, data).intdigest())
        setattr(made, f"{name}_hexdigest", lambda data, s=size: _Digest(s, data).hexdigest())
    return made


if "xxhash" not in sys.modules and importlib.util.find_spec("xxhash") is None:
    sys.modules["xxhash"] = stand_in()
    MISSING.append("xxhash")
