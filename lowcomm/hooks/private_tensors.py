"""The tensors that an island keeps to itself in a round: it does not take their global values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.hooks.base import Hook
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.state.spec import SyncSpec
from lowcomm.transport import Transport


class PrivateTensors(Hook):
    """Puts back what `codec.private` names for the round that comes; nothing for an island that was left out."""

    def __init__(self, spec: SyncSpec, replicas: Sequence[Replica], transport: Transport) -> None:
        self.spec, self.replicas, self.transport = spec, replicas, transport
        self._kept: list[dict[str, Tensor]] = []

    def before_write(self, out: Outgoing, arrived: Arrived) -> None:
        coming = out.round.index + 1
        after = dataclasses.replace(out.round, index=coming, seed=self.spec.round_seed(coming))
        like = out.anchors[0].named
        self._kept = []
        for replica, island in zip(self.replicas, self.transport.local, strict=True):
            own = frozenset[str]()
            if island not in arrived.cohort.dropped:
                own = self.spec.codec.private(like, dataclasses.replace(after, island=island))
            self._kept.append({n: replica.held[n].detach().clone() for n in out.fragment.names if n in own})

    @torch.no_grad()
    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        for replica, kept in zip(self.replicas, self._kept, strict=True):
            for name, value in kept.items():
                replica.held[name].copy_(value)
        self._kept = []
