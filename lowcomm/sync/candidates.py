"""Candidates for the next weights: the loss of a model at the anchor minus a Delta, for rules that judge by a text.

Every island computes it by itself, with the same bits on one kind of device; elsewhere islands would part, which the
comparison of weights after each commit sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from lowcomm.state.state import SyncState
from lowcomm.types import Delta

Losses = Callable[[int, Sequence[Delta]], list[float]]
"""Of a fragment's anchor minus each of some Deltas."""


def losses_at(state: SyncState, loss: Callable[[nn.Module], float]) -> Losses:
    """Losses of candidates on the first local island's model, which is then as it was."""

    @torch.no_grad()
    def losses(index: int, deltas: Sequence[Delta]) -> list[float]:
        replica, anchor = state.replicas[0], state.anchor_of(index, 0).named
        tensors = replica.tensors(state.fragments[index])
        kept, training = [t.detach().clone() for t in tensors], replica.model.training
        replica.model.eval()
        found: list[float] = []
        try:
            for delta in deltas:
                for t, (name, start) in zip(tensors, anchor.items(), strict=True):
                    t.copy_(start - delta[name].to(start.device))
                found.append(loss(replica.model))
        finally:
            for t, old in zip(tensors, kept, strict=True):
                t.copy_(old)
            state.written(index, [0])
            replica.model.train(training)
        return found

    return losses
