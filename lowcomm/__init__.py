"""lowcomm: train and fine-tune language models over slow, unequal or unreliable links."""

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
from lowcomm.version import __version__

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
