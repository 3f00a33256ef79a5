"""Islands that nobody vouches for: rules that leave out, clip or outvote Deltas which lie far from most others."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.aggregate import NNM, RFFL, Aggregator, CentredClipping, Krum, TrimmedMean
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD, Nesterov
from lowcomm.tiny_base import TinyBase


def smoke() -> RunConfig:
    """Six islands, one of which may send anything: the three Deltas closest to the others count; seconds on a CPU."""
    return _run("smoke", 6, Krum(faulty=1, best=3))  # 2 f + 3 = 5 and one to spare, which may send nothing


def trimmed() -> RunConfig:
    """Six islands, one of which may send anything: each coordinate without its extremes, after nearest neighbours."""
    return _run("trimmed", 6, NNM(faulty=1) | TrimmedMean(faulty=1))


def clipped() -> RunConfig:
    """Six islands: Deltas count as far as they lie from the last round's update, and no farther."""
    return _run("clipped", 6, NNM(faulty=1) | CentredClipping())


def reputation() -> RunConfig:
    """Six islands weigh by how well they have agreed with the updates so far; whoever falls behind is removed."""
    return _run("reputation", 6, RFFL())


def adapters() -> RunConfig:
    """Eight clients tune adapters of a tiny pretrained model, and one may send anything: Krum in the space of dW."""
    base = _run("adapters", 8, Krum(faulty=1, best=4))
    return replace(
        base,
        model=ModelConfig(origin=TinyBase(), tuning=LoRA(rank=8)),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3, weight_decay=0.0)),
        sync=replace(base.sync, outer=SGD(lr=1.0)),
    )


def _run(name: str, islands: int, rule: Aggregator) -> RunConfig:
    return RunConfig(
        name=f"robust-{name}",
        islands=islands,
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6), aggregator=rule),
        checkpoint=CheckpointConfig(every_rounds=2),
    )
