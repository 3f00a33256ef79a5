"""Islands of unequal speed that never wait for each other: FedBuff (arXiv 2106.06639) over an ordered log."""

from __future__ import annotations

from pathlib import Path

from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.exchange.buffered import Buffered
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov

SPEEDS = (1.0, 1.0, 0.6, 0.3)
"""Inner steps of each simulated island per tick."""


def smoke() -> RunConfig:
    """Four simulated islands, the slowest at 0.3 of the speed, 2 contributions per version: CPU, seconds."""
    return RunConfig(
        name="asynchronous-smoke",
        steps=96,
        islands=4,
        transport="simulated",
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(
            every=16,
            outer=Nesterov(lr=0.5, momentum=0.3),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Buffered(size=2, speeds=SPEEDS),
        ),
        checkpoint=CheckpointConfig(every_rounds=4),
    )


def fedbuff() -> RunConfig:
    """FedBuff with the model and steps of diloco.py:pretrain_cpu; the islands share --sync.exchange.log DIR."""
    return RunConfig(
        name="fedbuff",
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(
            every=32,
            outer=Nesterov(lr=0.5, momentum=0.3),
            codec=ErrorFeedback(codec=Int4()),
            exchange=Buffered(size=4, log=Path("runs/fedbuff-log")),
        ),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )
