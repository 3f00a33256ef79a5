"""lowcomm: train and fine-tune language models over slow, unequal or unreliable links."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lowcomm.types import (
    CheckpointError,
    ConfigError,
    CoverageError,
    DivergenceError,
    LowcommError,
    PayloadError,
    SyncError,
)
from lowcomm.version import __version__

if TYPE_CHECKING:
    from lowcomm import aggregate, codec, outer, schedule, transport
    from lowcomm.presets import DiLoCo, DiLoCoX, FedAvg, SparseLoCo, StreamingDiLoCo
    from lowcomm.sync import LocalSGD, SyncReport

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


def __getattr__(name: str) -> object:
    """Import what needs torch when it is asked for: it takes seconds, and what only starts others needs none of it."""
    if name in ("aggregate", "codec", "outer", "schedule", "transport"):
        return importlib.import_module(f"lowcomm.{name}")
    if name in ("LocalSGD", "SyncReport"):
        return getattr(importlib.import_module("lowcomm.sync"), name)
    if name in __all__:
        return getattr(importlib.import_module("lowcomm.presets"), name)
    raise AttributeError(f"module 'lowcomm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
