"""What benchmarks/store.py runs."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.exchange.store import Store
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov

NANO, TINY, SMALL = ModelConfig(preset="nano"), ModelConfig(preset="tiny"), ModelConfig(preset="3m", width=240)
"""0.12M, 0.8M and 4.3M parameters."""


def run(*, islands: int, rounds: int, every: int = 8, model: ModelConfig = NANO, patience_s: float = 5.0) -> RunConfig:
    """So many rounds of `islands` islands, in int4 with error feedback."""
    return RunConfig(
        name="store",
        islands=islands,
        steps=rounds * every,
        threads=1,
        tensorboard=False,
        log_every=1,
        data=DataConfig(seq_len=64, batch_size=4, validation_sequences=64),
        model=model,
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(
            every=every,
            outer=Nesterov(lr=0.7, momentum=0.6),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Store(patience_s=patience_s, snapshot_s=20.0),
        ),
        eval=EvalConfig(every=None),
        checkpoint=CheckpointConfig(export=False),
    )


def buffered(config: RunConfig, size: int, lr: float) -> RunConfig:
    """The same in commits of `size` contributions, with an outer rate of its own."""
    choice = config.sync.exchange
    assert isinstance(choice, Store)
    sync = replace(
        config.sync, exchange=replace(choice, mode="buffered", size=size), outer=Nesterov(lr=lr, momentum=0.3)
    )
    return replace(config, sync=sync)
