"""Gradient averaging at every step: data-parallel SGD (DDP), the baseline of every table.

Cost: one model of fp32 gradients per island each way, every inner step.
Reduces to: with one island, ordinary training.
Deviates from torch's DDP: no bucketed overlap with the backward pass; the sum is in island order, so that its bits
do not depend on the transport.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.schedule.base import Action, Schedule
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class EveryStep(Schedule):
    """DDP: gradients are averaged before each inner step; there is no outer optimizer step."""

    def __call__(self, step: int, every: int) -> Action:
        return Action(average_gradients=True)

    def check(self, every: int, steps: int | None) -> None:
        require(every >= 1, "sync.every", every, "1 or more", "it is the unit in which rounds are reported")
