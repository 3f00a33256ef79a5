"""Gossip: islands keep weights of their own and mix them with a few neighbours'; nobody waits for all."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.codec import Codec, Fp32, Int4, Int8
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.modest import Modest
from lowcomm.island import AdamW, InnerConfig
from lowcomm.local import SharpnessAware
from lowcomm.mixing import GASLoC, NoLoCo, Overlapped
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.topology import Exponential, Multigraph, OnePeer, RandomPairs, Ring


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
    return _pretrain("dsgd", SGD(lr=1.0), Gossip(topology=Exponential()))


def one_peer() -> RunConfig:
    """Decentralised local SGD on the one-peer exponential graph (arXiv 2110.13363) in 8 bits: one message a round."""
    return _pretrain("one-peer", SGD(lr=1.0), Gossip(topology=OnePeer()), Int8())


def adamw() -> RunConfig:
    """Decentralised AdamW (arXiv 2410.11998): weights are mixed with one peer's beside the steps of the round."""
    return _pretrain("decentralised-adamw", SGD(lr=1.0), Gossip(topology=OnePeer(), rule=Overlapped()))


def noloco() -> RunConfig:
    """A method of NoLoCo's kind (arXiv 2506.10911): random pairs, Nesterov momentum on each island's own weights."""
    return _pretrain("noloco", Nesterov(lr=0.7, momentum=0.5), Gossip(topology=RandomPairs()))


def noloco_pull() -> RunConfig:
    """NoLoCo with its own momentum over pairs, and the term that pulls their weights together."""
    return _pretrain("noloco-pull", SGD(lr=1.0), Gossip(topology=RandomPairs(), rule=NoLoCo()))


def gasloc() -> RunConfig:
    """GASLoC (arXiv 2606.11081): random pairs, with a share of each island's last move made again."""
    return _pretrain("gasloc", SGD(lr=1.0), Gossip(topology=RandomPairs(), rule=GASLoC()))


def dfedsam() -> RunConfig:
    """DFedSAM-MGS (arXiv 2302.04083): sharpness-aware inner steps, then four steps of mixing around a ring."""
    config = _pretrain("dfedsam", SGD(lr=1.0), Gossip(topology=Ring(), steps=4))
    return replace(config, sync=replace(config.sync, objective=SharpnessAware()))


def multigraph() -> RunConfig:
    """A ring of four of which one island is slow (arXiv 2207.09657): its edges rest, and nobody waits for it."""
    graph = Multigraph(overlay=Ring(), delay_s=(1.0, 1.0, 2.0, 4.0))
    return _pretrain("multigraph", SGD(lr=1.0), Gossip(topology=graph))


def modest() -> RunConfig:
    """MoDeST (arXiv 2302.13837): half of the islands train in a round, and aggregators move on: no server."""
    return _pretrain("modest", SGD(lr=1.0), Modest(sample=2))


def _pretrain(name: str, outer: Outer, exchange: ExchangeChoice, codec: Codec | None = None) -> RunConfig:
    return RunConfig(
        name=name,
        steps=2560,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=256),
        model=ModelConfig(preset="nano"),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3)),
        sync=SyncConfig(every=32, outer=outer, codec=codec or Fp32(), exchange=exchange),
        eval=EvalConfig(every=256),
        checkpoint=CheckpointConfig(every_rounds=20),
    )
