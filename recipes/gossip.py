"""Gossip: islands keep weights of their own and mix them with a few neighbours'; nobody waits for all."""

from __future__ import annotations

from lowcomm.codec import Int4
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.exchange.gossip import Gossip
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.topology import Exponential, RandomPairs, Topology


def smoke() -> RunConfig:
    """A 0.12M-parameter model around a ring in 4 bits: seconds on a CPU."""
    return RunConfig(
        name="gossip-smoke",
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=SGD(lr=1.0), codec=Int4(), exchange=Gossip()),
        checkpoint=CheckpointConfig(every_rounds=2),
    )


def dsgd() -> RunConfig:
    """Decentralised local SGD (arXiv 1705.09056) on an exponential graph: plain mixing after H = 32 AdamW steps."""
    return _pretrain("dsgd", SGD(lr=1.0), Exponential())


def noloco() -> RunConfig:
    """A method of NoLoCo's kind (arXiv 2506.10911): random pairs, Nesterov momentum on each island's own weights."""
    return _pretrain("noloco", Nesterov(lr=0.7, momentum=0.5), RandomPairs())


def _pretrain(name: str, outer: Outer, topology: Topology) -> RunConfig:
    return RunConfig(
        name=name,
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=outer, exchange=Gossip(topology=topology)),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )
