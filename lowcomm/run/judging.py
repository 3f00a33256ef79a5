"""Judging: an island's loss at given weights, on a little held-out text of its own, for rules that mix by it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowcomm.exchange.base import ExchangeChoice
from lowcomm.exchange.gossip import Gossip
from lowcomm.run.assembly import Run
from lowcomm.types import IGNORED

BATCHES = 2
"""Of held-out text."""


def needs_judge(choice: ExchangeChoice | None) -> bool:
    """Whether an exchange mixes by losses."""
    return isinstance(choice, Gossip) and choice.rule.judges


def judge_of(run: Run) -> Callable[[int, int, Tensor], float]:
    """`judge(index, local, flat)`: nats per token of local island `local` with fragment `index` at these weights.

    The island's own held-out text where it has some, else the first validation batches. Weights are put back.
    """
    texts = [
        (run.data.own_validation_batches(k) or run.data.validation_batches())[:BATCHES]
        for k in run.sync.transport.local
    ]

    @torch.no_grad()
    def judge(index: int, local: int, flat: Tensor) -> float:
        state, island = run.sync.state, run.islands[local]
        fragment = state.fragments[index]
        held = state.replicas[local].tensors(fragment)
        kept = [p.detach().clone() for p in held]
        fragment.unflatten(flat, held)
        island.model.eval()
        nats = tokens = 0.0
        for inputs, targets in texts[local]:
            nats += float(island.token_losses(inputs, targets).double().sum())
            tokens += float((targets != IGNORED).sum())
        island.model.train()
        for p, old in zip(held, kept, strict=True):
            p.copy_(old)
        return nats / tokens

    return judge
