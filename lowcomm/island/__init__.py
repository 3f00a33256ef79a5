"""Islands: how one replica trains between syncs."""

from lowcomm.island.inner import AdamW, Inner, InnerConfig, lr_factor
from lowcomm.island.plain import Batch, PlainIsland

__all__ = ["AdamW", "Batch", "Inner", "InnerConfig", "PlainIsland", "lr_factor"]
