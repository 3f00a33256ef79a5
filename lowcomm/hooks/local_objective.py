"""The local objective at work: what a method adds to the gradients of inner steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowcomm.hooks.base import Hook
from lowcomm.local import Objective
from lowcomm.state.anchor import Anchor
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.types import Delta, Part


class LocalObjective(Hook):
    """Corrects gradients before each inner step; counts the steps of the round."""

    def __init__(self, objective: Objective, replicas: Sequence[Replica], anchors: list[list[Anchor]]) -> None:
        self.objective, self.replicas, self.anchors = objective, replicas, anchors
        self.steps = [0 for _ in replicas]
        """Inner steps of each local island since its last commit."""
        for i, replica in enumerate(replicas):
            replica.inner.register_step_pre_hook(lambda *_, k=i: self._before_step(k))

    def collect(self, local: int, index: int, grads: Delta) -> Delta:
        """Control variates of fragment `index`, c - c_k, once the step's raw gradients were added up; none here."""
        return {}

    @torch.no_grad()
    def _before_step(self, i: int) -> None:
        replica = self.replicas[i]
        self.steps[i] += 1
        for index, anchors in enumerate(self.anchors):
            starts = anchors[i if len(anchors) > 1 else 0].named
            grads = {n: g for n in starts if n in replica.params and (g := replica.params[n].grad) is not None}
            controls = self.collect(i, index, grads)
            local = {n: replica.held[n] for n in starts if n in replica.held}  # averaged buffers are not
            had = list(grads)
            self.objective.correct(grads, local, starts, controls)
            for name in had:
                if name not in grads:
                    replica.params[name].grad = None

    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        for i in range(len(self.replicas)) if arrived.adopters is None else arrived.adopters:
            self.steps[i] = 0

    def island_part(self, local: int) -> Part:
        return {}, {"objective_steps": self.steps[local]}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.steps[local] = values.get("objective_steps", 0)
