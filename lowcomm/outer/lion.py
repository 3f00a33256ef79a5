"""Lion on the pseudo-gradient: steps of one size per entry.

Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675.

    x_{t+1} = x_t - lr sign(beta1 m_{t-1} + (1 - beta1) Delta_t),   m_t = beta2 m_{t-1} + (1 - beta2) Delta_t

Shapes and dtypes: those of the global weights, fp32. State: m, 4 B per parameter, on the outer device.
Cost on the wire: none of its own.
Raises: ConfigError for a value out of range.
Deviates: no weight decay, which is the inner optimizer's; lr is in the unit of Delta, whose entries are about H inner
rates, so that it is to be tuned with H.
Reduces to: outer sign descent for beta1 = beta2 = 0.
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
class Lion(Outer):
    """The sign of a moment of the pseudo-gradient."""

    lr: float = 0.003
    """Size of every entry's step, in the unit of the weights."""
    beta1: float = 0.9
    """Share of the moment in the sign that is applied, 0 <= beta1 < 1."""
    beta2: float = 0.99
    """Decay of the moment, 0 <= beta2 < 1."""

    def build(self, params: Sequence[Tensor]) -> Optimizer:
        return LionDescent(params, lr=self.lr, beta1=self.beta1, beta2=self.beta2)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.beta1", self.beta1)
        check_unit("sync.outer.beta2", self.beta2)


class LionDescent(DeltaOptimizer):
    """The update above over `params`; `p.grad` holds Delta."""

    def __init__(self, params: Sequence[Tensor], *, lr: float, beta1: float, beta2: float) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2})

    def update(self, p: Tensor, delta: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["m"] = torch.zeros_like(p)
        m = state["m"]
        p.sub_(torch.lerp(delta, m, group["beta1"]).sign_(), alpha=group["lr"])
        m.lerp_(delta, 1 - group["beta2"])
