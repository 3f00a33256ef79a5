"""The runs of benchmarks/faults.py; each process prepares the fault that is meant for it (faults_acts.py)."""

from __future__ import annotations

import dataclasses

from benchmarks.faults_acts import EVERY, ROUNDS, install
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, TopK
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov
from lowcomm.schedule import EveryStep, Streaming


def _run(codec: Codec | None = None) -> RunConfig:
    install()
    return RunConfig(
        name="faults",
        steps=EVERY * ROUNDS,
        log_every=EVERY,
        threads=1,
        device="cpu",
        tensorboard=False,
        data=DataConfig(seq_len=64, batch_size=4, validation_sequences=32),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=EVERY, outer=Nesterov(lr=0.7, momentum=0.6), codec=codec or Fp32()),
        checkpoint=CheckpointConfig(every_rounds=2, export=False),
    )


def plain() -> RunConfig:
    """Sums of fp32."""
    return _run()


def reduced() -> RunConfig:
    """Int4, reduced on the way (or shared, with two islands)."""
    return _run(ErrorFeedback(codec=Int4()))


def shared() -> RunConfig:
    """Int4, shared."""
    return _run(ErrorFeedback(codec=Int4(exchange="gather")))


def gathered() -> RunConfig:
    """Top-k, gathered."""
    return _run(ErrorFeedback(codec=TopK()))


def streamed() -> RunConfig:
    """Two fragments beside training."""
    base = _run()
    schedule = Streaming(fragments=2, delay=2)
    return dataclasses.replace(base, sync=dataclasses.replace(base.sync, schedule=schedule))


def averaged() -> RunConfig:
    """DDP."""
    base = _run()
    return dataclasses.replace(base, sync=dataclasses.replace(base.sync, schedule=EveryStep()))
