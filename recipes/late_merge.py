"""Late merge: islands train alone and merge only at the end, and a period that grows instead."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov
from lowcomm.schedule import Growing, LateMerge


def smoke() -> RunConfig:
    """A 0.12M-parameter model whose last two rounds end in a merge: seconds on a CPU."""
    return RunConfig(
        name="late-merge-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=SGD(lr=1.0), schedule=LateMerge(steps=96, merges=2)),
        checkpoint=CheckpointConfig(every_rounds=1),
    )


def late() -> RunConfig:
    """The tiny model: 20 merges, all in the last quarter."""
    return RunConfig(
        name="late-merge",
        steps=2560,
        data=DataConfig(seq_len=128, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="tiny"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=SGD(lr=1.0), schedule=LateMerge(steps=2560, merges=20)),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=5),
    )


def growing() -> RunConfig:
    """The tiny model: H from 16 to 128, growing by 3 % a round."""
    sync = SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.8), schedule=Growing(growth=1.03, longest=128))
    return replace(late(), name="growing", sync=sync)
