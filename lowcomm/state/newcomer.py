"""The state of an island that was lost when a checkpoint was saved, and takes part again: another's, without its work.

It goes on from the global weights with fresh moments, as new as what a Delta of zeros says, at the others' step.
"""

from __future__ import annotations

from typing import Any

import torch

from lowcomm.state.checkpoint import island_part, load_island
from lowcomm.state.state import SyncState
from lowcomm.types import Part

SHARED = ("step", "pending", "must_rebase", "gradient_steps", "unverified", "sync_s", "blocked_s")
"""What islands that stopped together have alike."""


@torch.no_grad()
def load_newcomer(state: SyncState, local: int, other: Part) -> None:
    """Bring a local island to where `other`, an island's part, is. The global part is loaded by now."""
    theirs, values = other
    for index in range(len(state.fragments)):
        state.write_back(index, [local])
    tensors, own = island_part(state, local)
    tensors |= {name: torch.zeros_like(t) for name, t in theirs.items() if name.startswith("flight.")}
    tensors |= {name: t for name, t in theirs.items() if name.startswith("buffer.")}
    tokens = values["tokens"]
    flights: list[dict[str, Any]] = [{**f, "norm": 0.0, "tokens": tokens, "unsynced": 0.0} for f in values["flights"]]
    synced = dict.fromkeys(values["synced_tokens"], tokens)
    mine = {**own, **{k: values[k] for k in SHARED}, "tokens": tokens, "synced_tokens": synced, "flights": flights}
    load_island(state, local, (tensors, mine))
