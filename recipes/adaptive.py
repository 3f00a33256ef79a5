"""H, bits and rank that follow the measured step, the measured link and the update's spectrum (arXiv 2506.21263)."""

from __future__ import annotations

from lowcomm.codec import Codec, ErrorFeedback, Graded, PowerSGD
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.schedule import Adaptive


def smoke() -> RunConfig:
    """A 0.12M-parameter model, H and bits for a link of 60 Mbit/s and 1 ms that is given: seconds on a CPU."""
    schedule = Adaptive(shortest=8, longest=64, step_s=0.02, link_mbit=60.0, round_trip_ms=1.0)
    return RunConfig(
        name="adaptive-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(
            every=16, outer=Nesterov(lr=0.7, momentum=0.6), schedule=schedule, codec=ErrorFeedback(codec=Graded())
        ),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def bits() -> RunConfig:
    """The tiny model: 8, 4 or 2 bits and H from 8 to 512, as the measured link allows at 95 % utilisation."""
    return _tiny("adaptive-bits", ErrorFeedback(codec=Graded()), Nesterov(lr=0.7, momentum=0.8))


def low_rank() -> RunConfig:
    """The tiny model: rank and bits from the update's spectrum, H from the measured link."""
    return _tiny("adaptive-rank", ErrorFeedback(codec=PowerSGD(rank=8, bits=16, energy=0.95)), SGD(lr=1.0))


def _tiny(name: str, codec: Codec, outer: Outer) -> RunConfig:
    return RunConfig(
        name=name,
        steps=2560,
        data=DataConfig(seq_len=128, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="tiny"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=outer, schedule=Adaptive(), codec=codec),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )
