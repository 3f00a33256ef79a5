"""Stand-ins for packages that a bare machine with a GPU may lack; import it before lowcomm.

Of lowcomm's packages two are needed at import by what benchmarks/gpu.py runs: xxhash for digests that are compared
between islands, whose place blake2b takes (it is slower, and rows say so), and safetensors, of which a run without
checkpoints uses nothing.
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


def empty_safetensors() -> dict[str, ModuleType]:
    """Modules whose functions are there to be imported, not to be called."""

    def missing(*_: Any) -> Any:
        raise ModuleNotFoundError("safetensors is not installed: nothing can be saved or loaded")

    first: Any = ModuleType("safetensors")
    first.SafetensorError, first.safe_open = type("SafetensorError", (Exception,), {}), missing
    torch: Any = ModuleType("safetensors.torch")
    for name in ("load", "load_file", "save", "save_file"):
        setattr(torch, name, missing)
    first.torch = torch
    return {"safetensors": first, "safetensors.torch": torch}


if "safetensors" not in sys.modules and importlib.util.find_spec("safetensors") is None:
    sys.modules.update(empty_safetensors())
if "xxhash" not in sys.modules and importlib.util.find_spec("xxhash") is None:
    sys.modules["xxhash"] = stand_in()
    MISSING.append("xxhash")
