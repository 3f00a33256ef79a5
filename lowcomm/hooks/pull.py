"""The pull of a rule of mixing: what it adds to the gradients of inner steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowcomm.exchange.base import Exchange
from lowcomm.state.anchor import Anchor
from lowcomm.state.replica import Replica


class Pull:
    """Adds `rho (d x - goal)` to each gradient, before the inner optimizer reads it and after clipping."""

    def __init__(self, exchange: Exchange, replicas: Sequence[Replica], anchors: Sequence[Sequence[Anchor]]) -> None:
        self.exchange, self.replicas, self.anchors = exchange, replicas, anchors
        for i, replica in enumerate(replicas):
            replica.inner.register_step_pre_hook(lambda *_, k=i: self._before_step(k))

    @torch.no_grad()
    def _before_step(self, local: int) -> None:
        replica = self.replicas[local]
        for index, anchors in enumerate(self.anchors):
            found = self.exchange.force(index, local)
            if found is None:
                continue
            rho, edges, goal = found
            for name, view in anchors[0].fragment.views(goal).items():
                held, grad = replica.held[name], replica.params[name].grad
                if grad is not None:
                    grad.add_(edges * held - view.to(held.device, held.dtype), alpha=rho)
