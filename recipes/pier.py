"""Pier (arXiv 2511.17849): DiLoCo that begins with plain averaging and takes its outer momentum later."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Pier


def smoke() -> RunConfig:
    """The DiLoCo smoke with an outer momentum that is warmed up: seconds on a CPU."""
    return RunConfig(
        name="pier-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=16, outer=Pier(lr=0.7, momentum=0.6, warmup_rounds=3)),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def pretrain_cpu() -> RunConfig:
    """Model and data order of diloco.py:pretrain_cpu in half of its rounds, where a warm-up of the momentum pays."""
    base = smoke()
    return replace(
        base,
        name="pier",
        steps=1280,
        data=replace(base.data, validation_sequences=256),
        sync=SyncConfig(every=32, outer=Pier(lr=0.7, momentum=0.8, warmup_rounds=20)),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )
