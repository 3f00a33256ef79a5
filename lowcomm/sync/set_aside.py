"""An island whose loss or gradients were not finite: it rests, is left out, and goes on from the global weights.

It gets them at once, so that what is saved meanwhile is finite, with fresh moments. In the roll call of each fragment
it says the norm NaN and, in place of its tokens, minus the inner step; it trains again when all have been exchanged.
"""

from __future__ import annotations

import torch

from lowcomm.state.replica import Replica
from lowcomm.state.state import SyncState


@torch.no_grad()
def set_aside(state: SyncState, local: int) -> None:
    """Take a local island out of training until every fragment has been exchanged once more."""
    replica = state.replicas[local]
    replica.failed_at, replica.unusable = state.step + 1, set(range(len(state.fragments)))
    replica.inner.zero_grad()
    replica.inner.state.clear()
    for index in range(len(state.fragments)):
        state.write_back(index, [local])
        state.written(index, [local])


def contribution(replica: Replica, index: int, whole: bool) -> float:
    """Tokens that an island says it contributes to a fragment; minus the inner step at which it failed, if it did.

    whole: of the whole run, not since the last sync.
    """
    if index in replica.unusable:
        return -float(replica.failed_at or 0)
    return replica.tokens if whole else replica.unsynced(index)
