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
        self._shared: dict[str, Tensor] = {}
        """By name: what clients without a copy of their own had, during a commit."""

    def before_write(self, out: Outgoing, arrived: Arrived) -> None:
        coming = out.round.index + 1
        after = dataclasses.replace(out.round, index=coming, seed=self.spec.round_seed(coming))
        like = out.anchors[0].named
        self._kept = []
        for replica, island in zip(self.replicas, self.transport.local, strict=True):
            own = frozenset[str]()
            if island not in arrived.cohort.dropped:
                own = self.spec.codec.private(like, dataclasses.replace(after, island=island))
            self._kept.append({n: self._copy(replica, n) for n in out.fragment.names if n in own})

    @torch.no_grad()
    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        stay: dict[str, bool] = {}
        for replica, kept in zip(self.replicas, self._kept, strict=True):
            for name, value in kept.items():
                if value is self._shared.get(name):
                    if name not in stay:
                        stay[name] = torch.equal(value, replica.held[name])
                    if stay[name]:
                        continue  # the global values have not moved: it goes on without a copy
                    value = value.clone()
                replica.keep(name, value)
        self._kept, self._shared = [], {}

    def _copy(self, replica: Replica, name: str) -> Tensor:
        """What a replica holds, out of reach of what is about to be written; of those that share it, one copy."""
        held = replica.held[name]
        if not replica.follows(name):
            return held if replica.shares_model else held.detach().clone()
        if name not in self._shared:
            self._shared[name] = held.clone()
        return self._shared[name]
