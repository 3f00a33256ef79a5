"""Islands that nobody vouches for: Krum (arXiv 1703.02757) leaves out the Deltas that lie far from most others."""

from __future__ import annotations

from lowcomm.aggregate import Krum
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov


def smoke() -> RunConfig:
    """Six islands, one of which may send anything: the three Deltas closest to the others count; seconds on a CPU."""
    return RunConfig(
        name="robust-smoke",
        islands=6,  # 2 f + 3 = 5 and one to spare, which may send nothing
        steps=96,
        data=DataConfig(seq_len=64, batch_size=8, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16, outer=Nesterov(lr=0.7, momentum=0.6), aggregator=Krum(faulty=1, best=3)),
        checkpoint=CheckpointConfig(every_rounds=2),
    )
