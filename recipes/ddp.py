"""The baseline: data-parallel training, gradients averaged over all islands at every step."""

from __future__ import annotations

import dataclasses

from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.schedule import EveryStep


def smoke() -> RunConfig:
    """The DiLoCo smoke's model, data and tokens under DDP: seconds on a CPU."""
    return RunConfig(
        name="ddp-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, schedule=EveryStep()),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def pretrain_cpu() -> RunConfig:
    """The model, data order and tokens of diloco.py:pretrain_cpu under DDP."""
    return RunConfig(
        name="ddp",
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, schedule=EveryStep()),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )


def pretrain() -> RunConfig:
    """The model, data and tokens of diloco.py:pretrain under DDP, for GPUs with fast links."""
    return dataclasses.replace(
        RunConfig(
            name="ddp-150m",
            steps=20_000,
            data=DataConfig(seq_len=1024, batch_size=16),
            model=ModelConfig(preset="150m"),
            inner=InnerConfig(optimizer=AdamW(lr=6e-4), accumulation=4),
        ),
        sync=SyncConfig(every=100, schedule=EveryStep(), outer_device="cpu"),
        eval=EvalConfig(every=1000),
        checkpoint=CheckpointConfig(every_rounds=5),
    )
