"""The three runs that benchmarks/planner.py times; rounds and lengths come from its flags."""

from __future__ import annotations

from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov
from lowcomm.schedule import EveryH, Schedule, Streaming

EVERY = 12
FRAGMENTS, DELAY = 3, 3
PRESET = "3m"


def _run(codec: Codec, schedule: Schedule) -> RunConfig:
    return RunConfig(
        name="planner",
        steps=5 * EVERY + 1,
        log_every=1,
        tensorboard=False,
        data=DataConfig(seq_len=64, batch_size=4, validation_sequences=8),
        model=ModelConfig(preset=PRESET),
        sync=SyncConfig(every=EVERY, outer=Nesterov(lr=0.7, momentum=0.6), codec=codec, schedule=schedule),
        checkpoint=CheckpointConfig(export=False),
    )


def fp32() -> RunConfig:
    """DiLoCo, fp32: training waits for each sync."""
    return _run(Fp32(), EveryH())


def int4() -> RunConfig:
    """DiLoCo, 4 bits with error feedback."""
    return _run(ErrorFeedback(codec=Int4()), EveryH())


def streaming() -> RunConfig:
    """Three fragments in 4 bits, each three steps on its way."""
    return _run(ErrorFeedback(codec=Int4()), Streaming(fragments=FRAGMENTS, delay=DELAY))
