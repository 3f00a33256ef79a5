"""Post-local SGD: a DDP warm-up, then one sync every H inner steps.

Lin et al., Don't Use Large Mini-Batches, Use Local SGD, arXiv 1808.07217.

Cost: W models of fp32 gradients for the W warm-up steps, then one model every H steps.
Reduces to: warmup_steps = 0 => EveryH; warmup_steps = all => EveryStep (DDP).
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.schedule.base import Action, Schedule
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class PostLocal(Schedule):
    """DDP for the first steps, local SGD with a sync every H steps after them."""

    warmup_steps: int = 0
    """Inner steps with averaged gradients (DDP) before the first local round."""

    def __call__(self, step: int, every: int) -> Action:
        if step <= self.warmup_steps:
            return Action(average_gradients=True)
        return Action(sync=(0,) if (step - self.warmup_steps) % every == 0 else ())

    def check(self, every: int, steps: int | None) -> None:
        top = "any" if steps is None else steps
        ok = self.warmup_steps >= 0 and (steps is None or self.warmup_steps <= steps)
        fix = "a tenth of the steps is usual"
        require(ok, "sync.schedule.warmup_steps", self.warmup_steps, f"0 <= warmup_steps <= steps ({top})", fix)
        require(every >= 1, "sync.every", every, "1 or more", "32 suits short runs")
