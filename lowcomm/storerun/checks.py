"""What a configuration may not ask of a run over a store, beyond the table of parts that do not go together."""

from __future__ import annotations

from lowcomm.config import RunConfig
from lowcomm.config_check import check
from lowcomm.data.hf_dataset import HFDataset
from lowcomm.storerun.blocks import BlockSizes
from lowcomm.storerun.plan import choice_of, shares_data
from lowcomm.types import ConfigError, require


def check_island(config: RunConfig) -> None:
    """Raise ConfigError for an island whose ranks hold parts that are no runs of elements (see `pieces.py`)."""
    cut = config.island.kind == "tensor" and (config.island.size or 1) > 1
    legal = "ddp, fsdp, zero1 to zero3 or pipeline with a store, as tensor parallel ranks hold columns"
    require(not cut, "island.kind", "tensor", legal, "pass --island.kind fsdp")


def check_store_run(config: RunConfig, islands: int) -> None:
    """Raise ConfigError for the first thing that members can't do. islands: the number that the run is made for."""
    check(config, islands)
    choice_of(config).check(islands)
    for name in ("clients", "baselines", "membership"):
        asked = getattr(config.eval, name)
        require(not asked, f"eval.{name}", True, "False with a store, whose members have no numbers", "leave it out")
    at = config.checkpoint.stop_at_step
    require(at is None, "checkpoint.stop_at_step", at, "None with a store", "use `lowcomm stop URL`")
    check_island(config)
    if not shares_data(config):
        return
    BlockSizes.of(config, choice_of(config), islands)
    source, privacy = config.data.source, config.sync.privacy
    if isinstance(source, HFDataset) and source.streaming:
        raise ConfigError(
            "data.source.streaming = True is not allowed with sync.exchange = Store: what is streamed has no blocks "
            "that members could lease. Fix: pass --data.source.no-streaming, or --data.sharding own"
        )
    if privacy is not None:
        raise ConfigError(
            f"sync.privacy = {type(privacy).__name__} is not allowed with a text that members share: how often a "
            "sequence was in work that was dropped is not known. Fix: pass --data.sharding own, or leave it out"
        )
