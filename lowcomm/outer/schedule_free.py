"""Schedule-free outer steps: momentum and averaging in one, without an end of the run to decay towards.

Defazio et al., The Road Less Scheduled, arXiv 2405.15682.

    z_{t+1} = z_t - lr Delta_t,   x_{t+1} = (1 - c) x_t + c z_{t+1},   c = 1 / (t + 1)
    y_{t+1} = (1 - b) z_{t+1} + b x_{t+1}

y: the global weights, from which islands start; b: `beta`; t = 1, 2, ...: this outer step; all three start alike.
Shapes and dtypes: those of the global weights, fp32. State: z and x, 8 B per parameter, and a counter.
Cost on the wire: none of its own.
Raises: ConfigError for a value out of range.
Deviates: what is evaluated and exported is y, from which the next round starts, not x. The inner rate falls as ever.
Reduces to: outer SGD for b = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.outer.base import DeltaOptimizer, Outer, check_lr, check_unit


@dataclass(frozen=True, kw_only=True)
class ScheduleFree(Outer):
    """SGD on the pseudo-gradient at a mean of its own iterates."""

    lr: float = 1.0
    """Outer learning rate (no unit)."""
    beta: float = 0.9
    """Share of the averaged iterate in the global weights, 0 <= beta < 1."""

    def build(self, params: Sequence[Tensor]) -> Optimizer:
        return ScheduleFreeDescent(params, lr=self.lr, beta=self.beta)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.beta", self.beta)


class ScheduleFreeDescent(DeltaOptimizer):
    """The update above over `params`, which are y; `p.grad` holds Delta."""

    def __init__(self, params: Sequence[Tensor], *, lr: float, beta: float) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    def update(self, p: Tensor, delta: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["z"], state["x"], state["step"] = p.clone(), p.clone(), 0
        state["step"] += 1
        z, x = state["z"], state["x"]
        z.add_(delta, alpha=-group["lr"])
        x.lerp_(z, 1 / (state["step"] + 1))
        p.copy_(torch.lerp(z, x, group["beta"]))
