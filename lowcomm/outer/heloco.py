"""HeLoCo's outer step: Nesterov with a momentum that is a moving mean of Deltas.

HeLoCo, arXiv 2606.00271. With mu = `momentum`; rho (what a stale contribution counts) is a part of Delta here:

    m <- mu m + (1 - mu) Delta
    x <- x - lr (Delta + mu m)

The momentum has the size of a Delta, so that a turn towards it (`arrival/heloco.py`) compares like with like, and many
small steps do not add up to a momentum of 1 / (1 - mu) Deltas.
Shapes and dtypes: those of the global weights, fp32. State: m, 4 B per parameter, on the outer device.
Cost on the wire: none of its own.
Deviations: read from the paper's summary.
Reduces to: momentum = 0 => outer SGD.
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
class HeLoCo(Outer):
    """Nesterov on a moving mean of pseudo-gradients."""

    lr: float = 0.7
    """Outer learning rate (no unit)."""
    momentum: float = 0.9
    """mu: decay of the mean (no unit), 0 <= momentum < 1."""

    def build(self, params: Sequence[Tensor]) -> Optimizer:
        return HeLoCoOptimizer(params, self)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.momentum", self.momentum)


class HeLoCoOptimizer(DeltaOptimizer):
    """The update above over `params`; `p.grad` holds Delta."""

    def __init__(self, params: Sequence[Tensor], settings: HeLoCo) -> None:
        super().__init__(params, {"lr": settings.lr, "momentum": settings.momentum})

    def update(self, p: Tensor, delta: Tensor, group: dict[str, Any]) -> None:
        state, mu = self.state[p], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        m = state["momentum_buffer"]
        m.mul_(mu).add_(delta, alpha=1 - mu)
        p.sub_(delta.add(m, alpha=mu), alpha=group["lr"])
