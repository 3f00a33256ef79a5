"""Delayed Nesterov: every arrival moves the weights, the momentum only every N-th.

Liu et al., Asynchronous Local-SGD Training for Language Modeling, arXiv 2401.09135; used on two levels by HALoS,
arXiv 2506.04531. With N = `every`, c = `spread` (0 to 1/N), beta = `momentum`, and Delta_t what arrives at step t:

    every N-th step:  m <- beta m + (1/N) sum of the last N Deltas
                      x <- x - lr ((1 - c N + c) beta m + Delta_t / N)
    all others:       x <- x - lr (c beta m + Delta_t / N)

Many small steps with the momentum of one large one move the weights too far (an asynchronous mode with the outer rate
of a synchronous run diverges); here N arrivals move them as far as one Nesterov step along their mean does.
Shapes and dtypes: those of the global weights, fp32. State: m and the sum, 8 B per parameter, on the outer device.
Cost on the wire: none of its own.
Deviations: HALoS's regional servers are not here.
Reduces to: every = 1, spread = 0: Nesterov; momentum = 0: outer SGD of rate lr / N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.outer.base import DeltaOptimizer, Outer, check_lr, check_unit
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class DelayedNesterov(Outer):
    """Nesterov whose momentum is applied every `every`-th step."""

    lr: float = 0.7
    """Outer learning rate (no unit): of N steps together."""
    momentum: float = 0.9
    """Outer momentum (no unit), 0 <= momentum < 1."""
    every: int = 4
    """N: steps per update of the momentum, 1 or more."""
    spread: float = 0.0
    """c: share of the momentum that each of the other steps applies, 0 to 1 / every."""

    def build(self, params: Sequence[Tensor]) -> Optimizer:
        return DelayedNesterovOptimizer(params, self)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.momentum", self.momentum)
        require(self.every >= 1, "sync.outer.every", self.every, "1 or more", "as many as there are islands")
        ok, legal = 0 <= self.spread <= 1 / self.every, f"0 to 1 / every ({1 / self.every:.6g})"
        require(ok, "sync.outer.spread", self.spread, legal, "0 applies all of it at once")


class DelayedNesterovOptimizer(DeltaOptimizer):
    """The update above over `params`; `p.grad` holds Delta."""

    def __init__(self, params: Sequence[Tensor], settings: DelayedNesterov) -> None:
        defaults: dict[str, Any] = {
            "lr": settings.lr, "momentum": settings.momentum, "every": settings.every, "spread": settings.spread,
        }  # fmt: skip
        super().__init__(params, defaults)

    def update(self, p: Tensor, delta: Tensor, group: dict[str, Any]) -> None:
        state, n, c = self.state[p], group["every"], group["spread"]
        if not state:
            state["momentum_buffer"], state["sum"], state["arrived"] = torch.zeros_like(p), torch.zeros_like(p), 0
        m, total = state["momentum_buffer"], state["sum"]
        total.add_(delta)
        state["arrived"] += 1
        share = c
        if state["arrived"] == n:
            m.mul_(group["momentum"]).add_(total, alpha=1 / n)
            total.zero_()
            state["arrived"], share = 0, 1 - c * n + c
        p.sub_(delta.mul(1 / n).add_(m, alpha=share * group["momentum"]), alpha=group["lr"])
