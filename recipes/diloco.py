"""DiLoCo (arXiv 2311.08105): islands train alone for H steps with AdamW, then merge with outer Nesterov."""

from __future__ import annotations

from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov
from lowcomm.schedule import PostLocal


def smoke() -> RunConfig:
    """A 0.12M-parameter model for a few rounds: seconds on a CPU, to see that everything works."""
    return RunConfig(
        name="diloco-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6)),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def pretrain_cpu() -> RunConfig:
    """A 0.12M-parameter Llama on the standard library's sources: under four minutes with 4 islands on 2 cores."""
    return RunConfig(
        name="diloco",
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=Nesterov(lr=0.7, momentum=0.8)),  # 80 rounds: 0.9 would still overshoot
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )


def warmup() -> RunConfig:
    """pretrain_cpu after a DDP warm-up of a tenth of the steps (post-local SGD)."""
    base = pretrain_cpu()
    return RunConfig(
        name="diloco-warmup",
        steps=base.steps,
        data=base.data,
        model=base.model,
        inner=base.inner,
        sync=SyncConfig(every=32, outer=Nesterov(lr=0.7, momentum=0.8), schedule=PostLocal(warmup_steps=256)),
        eval=base.eval,
        checkpoint=base.checkpoint,
    )


def pretrain() -> RunConfig:
    """A 150M-parameter Llama for GPUs under torchrun, H = 100; point --data.source at your text."""
    return RunConfig(
        name="diloco-150m",
        steps=20_000,
        data=DataConfig(seq_len=1024, batch_size=16),
        model=ModelConfig(preset="150m"),
        inner=InnerConfig(optimizer=AdamW(lr=6e-4), accumulation=4),
        sync=SyncConfig(every=100, outer=Nesterov(lr=0.7, momentum=0.9), outer_device="cpu"),
        eval=EvalConfig(every=1000),
        checkpoint=CheckpointConfig(every_rounds=5),
    )
