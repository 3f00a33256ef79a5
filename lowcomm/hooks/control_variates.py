"""The control variates of SCAFFOLD at work: a second sum in each round, beside the Delta's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from lowcomm.exchange.sum import sum_present
from lowcomm.hooks.base import Place
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
        self._zeros = [torch.zeros_like(c) for c in self.common]
        """By fragment: c_k of all islands that have not taken part yet. Nobody writes into it."""
        self.own = [list(self._zeros) for _ in replicas]
        self.sums: list[list[Tensor | None]] = [[None] * len(anchors) for _ in replicas]
        """None: nothing was added since the last commit."""

    def collect(self, local: int, index: int, grads: Delta) -> Delta:
        fragment, total = self.anchors[index][0].fragment, self.sums[local][index]
        if total is None:
            total = self.sums[local][index] = torch.zeros_like(self.common[index])
        sums = fragment.views(total)
        for name, grad in grads.items():
            sums[name].add_(grad)
        return fragment.views(self.common[index] - self.own[local][index])

    @torch.no_grad()
    def exchange(self, out: Outgoing, arrived: Arrived) -> list[Tensor]:
        """Changes of c_k by local island, then of c, from the islands of weight above 0."""
        index, weights = out.index, arrived.cohort.weights
        changes: list[Tensor] = []
        for i, own in enumerate(self.own):
            trained, change = self.sums[i][index], self._zeros[index]
            if trained is not None and weights[self.transport.local[i]] != 0 and self.steps[i] > 0:
                new = trained / self.steps[i] - own[index]
                change = new if bool(new.isfinite().all()) else change
            changes.append(change)
        total = torch.empty_like(self.common[index])
        share = 1 / self.transport.islands
        sum_present(self.transport, changes, [share if w != 0 else 0.0 for w in weights], total)
        return [*changes, total]

    @torch.no_grad()
    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        super().after_write(out, arrived, change)
        index, changes = out.index, cast("list[Tensor]", change)
        for i, own in enumerate(self.own):
            self.sums[i][index] = None
            if changes[i] is not self._zeros[index]:
                own[index] = own[index] + changes[i]
        self.common[index].add_(changes[-1])

    def global_part(self) -> Part:
        numels = [a[0].fragment.numel for a in self.anchors]
        return {f"control.{j}": c[:n] for j, (c, n) in enumerate(zip(self.common, numels, strict=True))}, {}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        for j, flat in enumerate(self.common):
            _fill(f"control.{j}", flat, tensors)

    def kept(self, local: int) -> Iterator[Place]:
        own = self.own[local]
        for j, (t, zeros) in enumerate(zip(own, self._zeros, strict=True)):
            if t is not zeros:
                yield t, partial(own.__setitem__, j)

    def island_part(self, local: int) -> Part:
        _, values = super().island_part(local)
        named: dict[str, Tensor] = {}
        for j, (own, total, zeros) in enumerate(zip(self.own[local], self.sums[local], self._zeros, strict=True)):
            numel = self.anchors[j][0].fragment.numel  # padding depends on the number of islands
            named |= {f"control_own.{j}": own[:numel]} if own is not zeros else {}
            named |= {f"control_sum.{j}": total[:numel]} if total is not None else {}
        return named, values

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().load_island(local, tensors, values)
        for j, zeros in enumerate(self._zeros):
            kept, total = torch.zeros_like(zeros), torch.zeros_like(zeros)
            _fill(f"control_own.{j}", kept, tensors)
            _fill(f"control_sum.{j}", total, tensors)
            self.own[local][j] = kept if bool(kept.any()) else zeros
            self.sums[local][j] = total if self.steps[local] else None


def _fill(name: str, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """The saved tensor, or zeros where there was nothing to save."""
    flat.zero_()
    if (saved := tensors.get(name)) is not None:
        flat[: saved.numel()].copy_(saved)
