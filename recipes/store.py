"""Come and go: runs that live in a store. `lowcomm train store.py:smoke --store DIR`; elsewhere `lowcomm join DIR`."""

from __future__ import annotations

from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.exchange.store import Store
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov


def smoke() -> RunConfig:
    """Three islands on one directory; kill one, let one join: seconds on a CPU."""
    return RunConfig(
        name="store-smoke",
        islands=3,
        steps=96,
        threads=1,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(
            every=16,
            outer=Nesterov(lr=0.7, momentum=0.6),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Store(patience_s=5.0),
        ),
        checkpoint=CheckpointConfig(export=True),
    )


def pretrain() -> RunConfig:
    """A 150M-parameter Llama on machines that come and go, H = 100: `--store s3://BUCKET/RUN`."""
    return RunConfig(
        name="store-150m",
        islands=4,
        steps=20_000,
        data=DataConfig(seq_len=1024, batch_size=16),
        model=ModelConfig(preset="150m"),
        inner=InnerConfig(optimizer=AdamW(lr=6e-4), accumulation=4),
        sync=SyncConfig(
            every=100,
            outer=Nesterov(lr=0.7, momentum=0.9),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Store(patience_s=120.0),
        ),
    )


def unequal() -> RunConfig:
    """`smoke` for islands of unequal speed: a commit takes two contributions, and nobody waits for anybody."""
    base = smoke()
    sync = SyncConfig(
        every=16,
        outer=Nesterov(lr=0.5, momentum=0.3),
        codec=ErrorFeedback(codec=Int4()),
        exchange=Store(mode="buffered", size=2, patience_s=5.0),
    )
    return RunConfig(
        name="store-unequal", islands=3, steps=base.steps, threads=1, data=base.data, model=base.model, sync=sync
    )
