"""Compressed pseudo-gradients: DiLoCo's rounds with fewer bytes in each."""

from __future__ import annotations

from lowcomm.codec import Codec, ErrorFeedback, Fp8, Int4, Int8, Sign, TwoBit
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov


def smoke() -> RunConfig:
    """The DiLoCo smoke with 4-bit updates and error feedback: seconds on a CPU."""
    return RunConfig(
        name="compressed-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6), codec=ErrorFeedback(codec=Int4())),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def _tiny(name: str, codec: Codec) -> RunConfig:
    return RunConfig(
        name=name,
        steps=2560,
        data=DataConfig(seq_len=128, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="tiny"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=Nesterov(lr=0.7, momentum=0.8), codec=codec),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )


def int8() -> RunConfig:
    """8 bits per update in blocks of 256, error feedback: a quarter of DiLoCo's bytes."""
    return _tiny("int8", ErrorFeedback(codec=Int8()))


def fp8() -> RunConfig:
    """8-bit floats (e4m3) in blocks of 256, error feedback: a quarter of DiLoCo's bytes."""
    return _tiny("fp8", ErrorFeedback(codec=Fp8()))


def int4() -> RunConfig:
    """4 bits per update in blocks of 256, error feedback: an eighth of DiLoCo's bytes."""
    return _tiny("int4", ErrorFeedback(codec=Int4()))


def two_bit() -> RunConfig:
    """2 bits per update in blocks of 256, error feedback: a sixteenth of DiLoCo's bytes."""
    return _tiny("two-bit", ErrorFeedback(codec=TwoBit()))


def sign() -> RunConfig:
    """1 bit per update and a scale per block of 256, error feedback: a thirtieth of DiLoCo's bytes."""
    return _tiny("sign", ErrorFeedback(codec=Sign()))
