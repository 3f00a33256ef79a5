"""Settings to data: the one entry point of the data layer."""

from __future__ import annotations

from lowcomm.data.config import DataConfig
from lowcomm.data.data import Data
from lowcomm.data.errors import bad
from lowcomm.data.hf_dataset import HFDataset
from lowcomm.data.in_memory import build_in_memory
from lowcomm.data.streamed import build_streamed


def build_data(config: DataConfig, islands: int, seed: int) -> Data:
    """The data of a run of `islands` islands; equal arguments and text give equal data in every process.

    Raises ConfigError for bad settings or text, before anything is written but the cache.
    """
    config.check(islands)
    if seed < 0:
        raise bad("seed", seed, "0 or more", "use a seed that is not negative")
    cache_dir = config.cache_dir.expanduser()
    if isinstance(config.source, HFDataset) and config.source.streaming:
        return build_streamed(config, config.source, islands, cache_dir)
    return build_in_memory(config, islands, seed, cache_dir)
