"""DiLoCo's rounds with Lion (arXiv 2302.06675) inside: one moment per parameter instead of AdamW's two."""

from __future__ import annotations

from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import InnerConfig, Lion
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov


def smoke() -> RunConfig:
    """The DiLoCo smoke with Lion inside: seconds on a CPU."""
    return RunConfig(
        name="lion-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=Lion()),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6)),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def pretrain_cpu() -> RunConfig:
    """The model, data order, tokens and rounds of diloco.py:pretrain_cpu with Lion inside."""
    return RunConfig(
        name="lion",
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=Lion(lr=6e-4)),
        sync=SyncConfig(every=32, outer=Nesterov(lr=0.7, momentum=0.8)),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )
