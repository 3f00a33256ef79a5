"""Outer SGD with heavy-ball momentum (FedAvgM, SlowMo).

Hsu et al., arXiv 1909.06335; Wang et al. (SlowMo), arXiv 1910.00643.

    u_t = mu * u_{t-1} + Delta_t
    x_{t+1} = x_t - lr * u_t

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
class HeavyBall(Outer):
    """SGD with heavy-ball momentum on the pseudo-gradient (FedAvgM)."""

    lr: float = 1.0
    """Outer learning rate (no unit)."""
    momentum: float = 0.9
    """Outer momentum (no unit), 0 <= momentum < 1."""

    def build(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum, fused=True)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.momentum", self.momentum)
