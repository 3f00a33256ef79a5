"""Streaming DiLoCo (arXiv 2501.18512): fragments sync in turn, and training goes on while one is on its way."""

from __future__ import annotations

from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, TopK
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.schedule import Streaming


def smoke() -> RunConfig:
    """Two fragments of a 0.12M-parameter model, each four steps on its way: seconds on a CPU."""
    return RunConfig(
        name="streaming-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6), schedule=Streaming(fragments=2, delay=4)),
        checkpoint=CheckpointConfig(every_rounds=4),
    )


def _tiny(name: str, codec: Codec, outer: Outer) -> RunConfig:
    return RunConfig(
        name=name,
        steps=2560,
        data=DataConfig(seq_len=128, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="tiny"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=outer, codec=codec, schedule=Streaming(fragments=4, delay=5)),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=80),
    )


def fp32() -> RunConfig:
    """Four fragments of the tiny model, each five steps on its way."""
    return _tiny("streaming", Fp32(), Nesterov(lr=0.7, momentum=0.8))


def int4() -> RunConfig:
    """The same in 4 bits with error feedback, as the paper sends it (there e3m0, here integers in blocks)."""
    return _tiny("streaming-int4", ErrorFeedback(codec=Int4()), Nesterov(lr=0.7, momentum=0.8))


def sparse() -> RunConfig:
    """The same with 64 of 4096 in 2 bits, error feedback and averaging (SparseLoCo's payload)."""
    return _tiny("streaming-sparse", ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95), SGD(lr=1.0))
