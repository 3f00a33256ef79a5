"""The averaging of named buffers over the islands, with the weights of the round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from lowcomm.exchange.worker import Worker
from lowcomm.hooks.base import Hook
from lowcomm.state.fragment import Fragment
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.transport import Transport


class BufferAverage(Hook):
    """Averages the buffers that were named for it; of several ranks' copies it takes their mean."""

    exchanges_again: ClassVar[bool] = True

    def __init__(self, buffers: Fragment, replicas: Sequence[Replica], transport: Transport, worker: Worker) -> None:
        self.buffers, self.replicas, self.transport, self.worker = buffers, replicas, transport, worker

    @torch.no_grad()
    def means(self, weights: Sequence[float]) -> Tensor:
        """The mean over the islands, fp32, flat; nothing is written. Raises SyncError."""
        self.worker.wait()
        flats = [self.buffers.flatten(r.tensors(self.buffers), i) for i, r in enumerate(self.replicas)]
        if self.transport.ranks > 1:
            flats = [self.transport.inside(flat.cpu()).mean(dim=0).to(flat.device) for flat in flats]
        try:
            self.transport.weighted_sum(flats, weights, self.buffers.mean)
            return self.buffers.mean.clone()
        finally:
            self.buffers.release()

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Every replica's buffers <- `flat`."""
        for replica in self.replicas:
            self.buffers.unflatten(flat, replica.tensors(self.buffers))

    def exchange(self, out: Outgoing, arrived: Arrived) -> Tensor:
        return self.means(arrived.cohort.weights)

    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        self.write(cast("Tensor", change))
