"""The averaging of inner optimizers' moments over the islands, in the rounds in which it is due."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from lowcomm.exchange.sum import sum_present
from lowcomm.hooks.base import Hook
from lowcomm.local import DesLoc
from lowcomm.state.fragment import Fragment
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.transport import Transport

FIRST, SECOND = ("exp_avg", "momentum_buffer"), ("exp_avg_sq",)
"""Names of moments in optimizers' states."""


class MomentAverage(Hook):
    """Averages what `DesLoc` says is due; parameters without the moment, as before a first step, give zeros."""

    exchanges_again: ClassVar[bool] = True

    def __init__(self, choice: DesLoc, replicas: Sequence[Replica], transport: Transport) -> None:
        self.choice, self.replicas, self.transport = choice, replicas, transport

    def due(self, round_index: int) -> list[tuple[str, ...]]:
        """The moments that are averaged with round `round_index`, counted from 0."""
        periods = ((self.choice.first_every, FIRST), (self.choice.second_every, SECOND))
        return [names for every, names in periods if every is not None and (round_index + 1) % every == 0]

    @torch.no_grad()
    def exchange(self, out: Outgoing, arrived: Arrived) -> list[Tensor]:
        """Means of what is due, flat, fp32; nothing is written. Raises SyncError."""
        means: list[Tensor] = []
        for names in self.due(out.round.index):
            flats = [self._flat(out.fragment, replica, names) for replica in self.replicas]
            mean = torch.empty_like(flats[0])
            sum_present(self.transport, flats, arrived.cohort.weights, mean)
            means.append(mean)
        return means

    @torch.no_grad()
    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        for names, mean in zip(self.due(out.round.index), cast("list[Tensor]", change), strict=True):
            views = out.fragment.views(mean)
            for replica in self.replicas:
                for name, view in views.items():
                    if (moment := _moment(replica, name, names)) is not None:
                        moment.copy_(view)

    def _flat(self, fragment: Fragment, replica: Replica, names: Sequence[str]) -> Tensor:
        flat = torch.zeros(fragment.size, device=fragment.device)
        for name, view in fragment.views(flat).items():
            if (moment := _moment(replica, name, names)) is not None:
                view.copy_(moment)
        return flat


def _moment(replica: Replica, parameter: str, names: Sequence[str]) -> Tensor | None:
    """The parameter's moment of one of these names in the island's optimizer."""
    p = replica.params.get(parameter)
    if p is None or p not in replica.inner.state:
        return None
    state = replica.inner.state[p]
    return next((state[n] for n in names if isinstance(state.get(n), Tensor) and state[n].shape == p.shape), None)
