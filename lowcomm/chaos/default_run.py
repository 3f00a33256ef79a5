"""The run that chaos is tried on where no recipe is named: three small islands, seconds on a CPU."""

from __future__ import annotations

from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.exchange.store import Store
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov

EVERY, ROUNDS = 2, 26


def default_run() -> RunConfig:
    """Int4 with error feedback, snapshots as often as a run of seconds needs them."""
    return RunConfig(
        name="chaos",
        islands=3,
        steps=EVERY * ROUNDS,
        threads=1,
        device="cpu",
        tensorboard=False,
        log_every=EVERY,
        data=DataConfig(seq_len=64, batch_size=4, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(
            every=EVERY,
            outer=Nesterov(lr=0.7, momentum=0.6),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Store(patience_s=1.5, snapshot_s=1.5),
        ),
        eval=EvalConfig(every=None),
        checkpoint=CheckpointConfig(export=False),
    )
