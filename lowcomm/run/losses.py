"""What a run does when islands are lost: who takes over, and whether those that are left save."""

from __future__ import annotations

import contextlib

from lowcomm.run.assembly import Run
from lowcomm.run.run_dir import lock
from lowcomm.types import ConfigError


def saves_without(run: Run) -> bool:
    """Whether a checkpoint without the lost islands can be gone on from: not where each has weights of its own."""
    return run.sync.state.exchange.anchors == "shared"


def take_over(run: Run) -> None:
    """Be the one that writes what the run leaves behind, and keeps other runs out of its directory."""
    run.progress.enabled = True
    if run.lock is None and run.leads_node:
        with contextlib.suppress(ConfigError):  # who had it is frozen, not dead, and still keeps others out
            run.lock = lock(run.directory, 0, "auto")
