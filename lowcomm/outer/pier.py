"""Pier: outer Nesterov whose momentum is warmed up from plain averaging, and falls again near the end.

Fan et al., Pier: Efficient Large Language Model Pretraining with Relaxed Global Communication, arXiv 2511.17849.

    w_t = min(1, t / W),   d_t = min(1, max(0, t - T) / D),   t = 0, 1, ...: outer steps so far
    mu_t = mu_0 + (mu - mu_0) w_t + (mu_1 - mu) d_t,   lr_t = lr_0 + (lr - lr_0) w_t + (lr_1 - lr) d_t
    u_t = mu_t u_{t-1} + Delta_t,   x_{t+1} = x_t - lr_t (Delta_t + mu_t u_t)

mu: `momentum`, mu_0: `first_momentum`, mu_1: `last_momentum`; lr: `lr`, `first_lr`, `last_lr`; W: `warmup_rounds`; T:
`decay_from`, D: `decay_rounds`. Early rounds move far and apart, so that momentum overshoots; late ones move slowly.
Shapes and dtypes: those of the global weights, fp32. State: u, 4 B per parameter, and a counter, on the outer device.
Cost on the wire: none of its own.
Raises: ConfigError for a value out of range, or a decay that begins within the warm-up.
Deviates: the paper's warm-up is of data-parallel steps, whose gradients fill u; here rounds fill it, short ones with
`Growing` from H = 1. The rate is scheduled with the momentum.
Reduces to: Nesterov for W = 0 without decay; averaging while w_t = 0 with lr_0 = 1, mu_0 = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.outer.base import DeltaOptimizer, Outer, check_unit
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Pier(Outer):
    """Nesterov with momentum and rate that follow the number of the round."""

    lr: float = 0.7
    """Outer learning rate after the warm-up (no unit)."""
    momentum: float = 0.9
    """Outer momentum after the warm-up (no unit), 0 <= momentum < 1."""
    warmup_rounds: int = 20
    """W: rounds from the first rate and momentum to these; 0: none."""
    first_lr: float = 1.0
    """Outer learning rate of the first round (no unit)."""
    first_momentum: float = 0.0
    """Outer momentum of the first round (no unit)."""
    decay_from: int | None = None
    """T: rounds after which they move towards the last ones; None: never."""
    decay_rounds: int = 20
    """D: rounds that this takes, 1 or more."""
    last_lr: float = 1.0
    """Outer learning rate after the decay (no unit)."""
    last_momentum: float = 0.5
    """Outer momentum after the decay (no unit)."""

    def build(self, params: Sequence[Tensor]) -> Optimizer:
        return ScheduledNesterov(params, self)

    def at(self, done: int) -> tuple[float, float]:
        """Learning rate and momentum of the outer step after `done` of them."""
        warm = 1.0 if self.warmup_rounds == 0 else min(1.0, done / self.warmup_rounds)
        late = 0.0 if self.decay_from is None else min(1.0, max(0, done - self.decay_from) / self.decay_rounds)
        lr = self.first_lr + (self.lr - self.first_lr) * warm + (self.last_lr - self.lr) * late
        return lr, self.first_momentum + (self.momentum - self.first_momentum) * warm + (
            self.last_momentum - self.momentum
        ) * late

    def check(self) -> None:
        for name in ("lr", "first_lr", "last_lr"):
            rate = getattr(self, name)
            legal = "a finite number above 0"
            require(0 < rate < float("inf"), f"sync.outer.{name}", rate, legal, "0.7 suits DiLoCo, 1.0 averaging")
        for name in ("momentum", "first_momentum", "last_momentum"):
            check_unit(f"sync.outer.{name}", getattr(self, name))
        warm, start, rounds = self.warmup_rounds, self.decay_from, self.decay_rounds
        require(warm >= 0, "sync.outer.warmup_rounds", warm, "0 or more", "an eighth of the rounds is usual")
        ok = start is None or start >= warm
        require(ok, "sync.outer.decay_from", start, f"{warm} (warmup_rounds) or more, or None", "leave it out")
        require(rounds >= 1, "sync.outer.decay_rounds", rounds, "1 or more", "an eighth of the rounds is usual")


class ScheduledNesterov(DeltaOptimizer):
    """The update above over `params`; `p.grad` holds Delta."""

    def __init__(self, params: Sequence[Tensor], settings: Pier) -> None:
        super().__init__(params, {"lr": settings.lr, "momentum": settings.momentum})
        self.settings = settings

    def update(self, p: Tensor, delta: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["u"], state["step"] = torch.zeros_like(p), 0
        lr, momentum = self.settings.at(state["step"])
        state["step"] += 1
        state["u"].mul_(momentum).add_(delta)
        p.add_(delta, alpha=-lr).add_(state["u"], alpha=-lr * momentum)
