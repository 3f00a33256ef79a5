"""The control variates of SCAFFOLD at work: a second sum in each round, beside the Delta's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from lowcomm.exchange.sum import sum_present
from lowcomm.hooks.local_objective import LocalObjective
from lowcomm.local import Objective
from lowcomm.state.anchor import Anchor
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.transport import Transport
from lowcomm.types import Delta, Part


class ControlVariates(LocalObjective):
    """Keeps c, c_k and the round's sum of raw gradients: by local island, then by fragment; flat fp32 of its size."""

    exchanges_again: ClassVar[bool] = True

    def __init__(
        self, objective: Objective, replicas: Sequence[Replica], anchors: list[list[Anchor]], transport: Transport
    ) -> None:
        super().__init__(objective, replicas, anchors)
        self.transport = transport
        self.common = [torch.zeros_like(a[0].weights) for a in anchors]
        """c, by fragment; equal on every island."""
        self.own = [[torch.zeros_like(c) for c in self.common] for _ in replicas]
        self.sums = [[torch.zeros_like(c) for c in self.common] for _ in replicas]

    def collect(self, local: int, index: int, grads: Delta) -> Delta:
        fragment = self.anchors[index][0].fragment
        sums = fragment.views(self.sums[local][index])
        for name, grad in grads.items():
            sums[name].add_(grad)
        return fragment.views(self.common[index] - self.own[local][index])

    @torch.no_grad()
    def exchange(self, out: Outgoing, arrived: Arrived) -> list[Tensor]:
        """Changes of c_k by local island, then of c, from the islands of weight above 0."""
        index, weights = out.index, arrived.cohort.weights
        changes: list[Tensor] = []
        for i, own in enumerate(self.own):
            change = self.sums[i][index] / max(1, self.steps[i]) - own[index]
            counts = weights[self.transport.local[i]] != 0 and self.steps[i] > 0 and bool(change.isfinite().all())
            changes.append(change if counts else torch.zeros_like(change))
        total = torch.empty_like(self.common[index])
        share = 1 / self.transport.islands
        sum_present(self.transport, changes, [share if w != 0 else 0.0 for w in weights], total)
        return [*changes, total]

    @torch.no_grad()
    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        super().after_write(out, arrived, change)
        index, changes = out.index, cast("list[Tensor]", change)
        for i, own in enumerate(self.own):
            self.sums[i][index].zero_()
            own[index].add_(changes[i])
        self.common[index].add_(changes[-1])

    def global_part(self) -> Part:
        return self._named("control", self.common), {}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        _fill("control", self.common, tensors)

    def island_part(self, local: int) -> Part:
        _, values = super().island_part(local)
        own = self._named("control_own", self.own[local])
        return {**own, **self._named("control_sum", self.sums[local])}, values

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().load_island(local, tensors, values)
        _fill("control_own", self.own[local], tensors)
        _fill("control_sum", self.sums[local], tensors)

    def _named(self, kind: str, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Without padding, which depends on the number of islands."""
        numels = [a[0].fragment.numel for a in self.anchors]
        return {f"{kind}.{j}": t[:n] for j, (t, n) in enumerate(zip(flats, numels, strict=True))}


def _fill(kind: str, flats: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
    for j, flat in enumerate(flats):
        saved = tensors[f"{kind}.{j}"]
        flat.zero_()
        flat[: saved.numel()].copy_(saved)
