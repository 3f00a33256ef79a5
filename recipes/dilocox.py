"""DiLoCoX (arXiv 2506.21263): each round's update travels during the next one, low-rank in few bits."""

from __future__ import annotations

import dataclasses

from lowcomm.codec import ErrorFeedback, Int4, PowerSGD
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD
from lowcomm.schedule import OneStepDelay


def smoke() -> RunConfig:
    """A 0.12M-parameter model with one-step-delay overlap: seconds on a CPU."""
    return RunConfig(
        name="dilocox-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=SGD(lr=1.0), schedule=OneStepDelay(), codec=_codec()),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def pretrain_cpu() -> RunConfig:
    """The tiny model: H = 32, rank 8 and less as the spectrum allows, 8-bit factors, error feedback."""
    return RunConfig(
        name="dilocox",
        steps=2560,
        data=DataConfig(seq_len=128, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="tiny"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=SGD(lr=1.0), schedule=OneStepDelay(), codec=_codec()),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )


def int4() -> RunConfig:
    """The tiny model: the same schedule in plain 4 bits with error feedback."""
    config = pretrain_cpu()
    sync = dataclasses.replace(config.sync, codec=ErrorFeedback(codec=Int4()))
    return dataclasses.replace(config, name="dilocox-int4", sync=sync)


def _codec() -> ErrorFeedback:
    return ErrorFeedback(codec=PowerSGD(rank=8, bits=8, energy=0.95))
