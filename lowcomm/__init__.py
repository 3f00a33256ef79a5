"""lowcomm: train and fine-tune language models over slow, unequal or unreliable links.

Names are loaded when they are first used, so that a command line that is refused does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lowcomm.version import __version__

if TYPE_CHECKING:
    from lowcomm import aggregate, codec, outer, schedule, transport
    from lowcomm.presets import DiLoCo, DiLoCoX, FedAvg, SparseLoCo, StreamingDiLoCo
    from lowcomm.sync import LocalSGD, SyncReport
    from lowcomm.types import (
        CheckpointError,
        ConfigError,
        CoverageError,
        DivergenceError,
        LowcommError,
        PayloadError,
        SyncError,
    )

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CoverageError",
    "DiLoCo",
    "DiLoCoX",
    "DivergenceError",
    "FedAvg",
    "LocalSGD",
    "LowcommError",
    "PayloadError",
    "SparseLoCo",
    "StreamingDiLoCo",
    "SyncError",
    "SyncReport",
    "__version__",
    "aggregate",
    "codec",
    "outer",
    "schedule",
    "transport",
]

_SUBPACKAGES = ("aggregate", "codec", "outer", "schedule", "transport")
_PRESETS = ("DiLoCo", "DiLoCoX", "FedAvg", "SparseLoCo", "StreamingDiLoCo")


def __getattr__(name: str) -> object:
    """Load a public name (PEP 562)."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"lowcomm.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'lowcomm' has no attribute {name!r}")
    home = "presets" if name in _PRESETS else "sync" if name in ("LocalSGD", "SyncReport") else "types"
    value = getattr(importlib.import_module(f"lowcomm.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
