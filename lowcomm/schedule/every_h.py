"""Every H inner steps, one sync of the whole model (local SGD, FedAvg, DiLoCo).

Stich, arXiv 1805.09767; Douillard et al., arXiv 2311.08105.

Cost: one model of payload per island each way, every H steps.
Reduces to: H = 1 with inner SGD and outer SGD of lr 1 => synchronous SGD.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.schedule.base import Action, Schedule, check_every


@dataclass(frozen=True, kw_only=True)
class EveryH(Schedule):
    """One sync of everything after each H inner steps."""

    def __call__(self, step: int, every: int) -> Action:
        return Action(sync=(0,) if step % every == 0 else ())

    def check(self, every: int, steps: int | None) -> None:
        check_every(every, steps)
