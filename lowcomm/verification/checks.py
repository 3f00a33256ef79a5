"""What a run must be like for its steps to be hashed, and computed again."""

from __future__ import annotations

from lowcomm.config import RunConfig
from lowcomm.types import ConfigError, require


def check_can_rerun(config: RunConfig) -> None:
    """Raise ConfigError for a run whose rounds can't be computed again from its directory."""
    own = config.data.sharding == "own"
    legal = "iid, by_folder or a partition, as sites that keep their text hold no other's"
    require(not own, "data.sharding", "own", legal, "let each site audit itself")
    if not config.step_hashes:
        raise ConfigError("step_hashes = False is not allowed: nothing to compare. Fix: train with --step-hashes")
