"""Islands that nobody vouches for: rules that leave out, clip or outvote Deltas which lie far from most others."""

from __future__ import annotations

from lowcomm.aggregate import NNM, Aggregator, CentredClipping, Krum, TrimmedMean
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov


def smoke() -> RunConfig:
    """Six islands, one of which may send anything: the three Deltas closest to the others count; seconds on a CPU."""
    return _run("smoke", 6, Krum(faulty=1, best=3))  # 2 f + 3 = 5 and one to spare, which may send nothing


def trimmed() -> RunConfig:
    """Six islands, one of which may send anything: each coordinate without its extremes, after nearest neighbours."""
    return _run("trimmed", 6, NNM(faulty=1) | TrimmedMean(faulty=1))


def clipped() -> RunConfig:
    """Six islands: Deltas count as far as they lie from the last round's update, and no farther."""
    return _run("clipped", 6, NNM(faulty=1) | CentredClipping())


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
