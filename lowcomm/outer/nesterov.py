"""Outer SGD with Nesterov momentum: DiLoCo's outer optimizer.

Douillard et al., DiLoCo, arXiv 2311.08105.

    u_t = mu * u_{t-1} + Delta_t
    x_{t+1} = x_t - lr * (Delta_t + mu * u_t)

Shapes and dtypes: those of the global weights, fp32. State: u, 4 B per parameter, on the outer device.
Cost on the wire: none of its own.
Reduces to: momentum = 0 => outer SGD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.outer.base import Outer, check_lr, check_unit


@dataclass(frozen=True, kw_only=True)
class Nesterov(Outer):
    """SGD with Nesterov momentum on the pseudo-gradient (DiLoCo)."""

    lr: float = 0.7
    """Outer learning rate (no unit)."""
    momentum: float = 0.9
    """Outer momentum (no unit), 0 <= momentum < 1."""

    def build(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        nesterov = self.momentum > 0
        # fused: one pass over memory and no temporaries, half the time of the default on a CPU
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=True)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.momentum", self.momentum)
