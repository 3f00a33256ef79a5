"""Eager updates (arXiv 2502.12996): an exchange has the whole next round, an island applies its own part at once."""

from __future__ import annotations

from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov
from lowcomm.schedule import Eager


def smoke() -> RunConfig:
    """A 0.12M-parameter model with eager updates in 4 bits: seconds on a CPU."""
    return RunConfig(
        name="eager-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=_sync(16),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def pretrain_cpu() -> RunConfig:
    """The tiny model: H = 32, 4 bits, error feedback, a whole round of time for every exchange."""
    return RunConfig(
        name="eager",
        steps=2560,
        data=DataConfig(seq_len=128, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="tiny"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=_sync(32),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )


def _sync(every: int) -> SyncConfig:
    outer = Nesterov(lr=0.5, momentum=0.3)  # what arrives a round late must not be pushed as far
    return SyncConfig(every=every, outer=outer, schedule=Eager(), codec=ErrorFeedback(codec=Int4()))
