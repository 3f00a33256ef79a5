"""MuLoCo (arXiv 2505.23725): DiLoCo's rounds with Muon inside, whose updates survive few bits better than AdamW's."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.codec import ErrorFeedback, TwoBit
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import InnerConfig, Muon
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov


def smoke() -> RunConfig:
    """The DiLoCo smoke with Muon inside: seconds on a CPU."""
    return RunConfig(
        name="muloco-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=Muon()),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6)),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def pretrain_cpu() -> RunConfig:
    """The model, data order, tokens and rounds of diloco.py:pretrain_cpu with Muon inside."""
    return RunConfig(
        name="muloco",
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=Muon(lr=6e-3)),
        sync=SyncConfig(every=32, outer=Nesterov(lr=0.7, momentum=0.8)),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )


def two_bit() -> RunConfig:
    """pretrain_cpu in 2 bits per update with error feedback: a sixteenth of the bytes."""
    base = pretrain_cpu()
    return replace(base, name="muloco-two-bit", sync=replace(base.sync, codec=ErrorFeedback(codec=TwoBit())))


def pretrain() -> RunConfig:
    """diloco.py:pretrain's 150M-parameter Llama with Muon inside, 2 bits, for GPUs under torchrun."""
    return RunConfig(
        name="muloco-150m",
        steps=20_000,
        data=DataConfig(seq_len=1024, batch_size=16),
        model=ModelConfig(preset="150m"),
        inner=InnerConfig(optimizer=Muon(lr=6e-4), accumulation=4),
        sync=SyncConfig(
            every=30, outer=Nesterov(lr=0.7, momentum=0.9), codec=ErrorFeedback(codec=TwoBit()), outer_device="cpu"
        ),
        eval=EvalConfig(every=1000),
        checkpoint=CheckpointConfig(every_rounds=5),
    )
