"""Islands: how one replica trains between syncs."""

from lowcomm.island.batched import BatchedIslands
from lowcomm.island.inner import AdamW, Inner, InnerConfig, lr_factor
from lowcomm.island.plain import Batch, PlainIsland

__all__ = ["AdamW", "Batch", "BatchedIslands", "Inner", "InnerConfig", "PlainIsland", "lr_factor"]
