"""The base of FedAdagrad, FedAdam and FedYogi: one update, three second moments.

Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295, Algorithm 2.

    m_t = beta1 * m_{t-1} + (1 - beta1) * Delta_t
    x_{t+1} = x_t - lr * m_t / (sqrt(v_t) + tau)          v_0 = tau^2, no bias correction; v_t: each method's

Delta has gradient sign here, so that the paper's plus is our minus.
Shapes and dtypes: those of the global weights, fp32. State: m and v, 8 B per parameter, on the outer device.
Cost on the wire: none of its own.
Reduces to: tau -> infinity with lr = c * tau, beta1 = 0 => outer SGD of rate c.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.outer.base import DeltaOptimizer, Outer, check_lr, check_unit
from lowcomm.types import require


class Adaptive(Outer):
    """Base: a frozen dataclass with these fields, and what its second moment needs."""

    lr: float
    beta1: float
    tau: float

    @abstractmethod
    def second_moment(self, v: Tensor, delta: Tensor, group: Mapping[str, float]) -> None:
        """v_{t-1} -> v_t in place. group: the fields, as the optimizer has them."""

    def build(self, params: Sequence[Tensor]) -> Optimizer:
        return AdaptiveOptimizer(params, self)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.beta1", self.beta1)
        require(self.tau > 0, "sync.outer.tau", self.tau, "above 0", "1e-3 is the paper's default")


class AdaptiveOptimizer(DeltaOptimizer):
    """The update above over `params`; `p.grad` holds Delta."""

    def __init__(self, params: Sequence[Tensor], settings: Adaptive) -> None:
        super().__init__(params, dataclasses.asdict(cast("Any", settings)))
        self.settings = settings

    def update(self, p: Tensor, delta: Tensor, group: dict[str, float]) -> None:
        state = self.state[p]
        if not state:
            state["m"] = torch.zeros_like(p)
            state["v"] = torch.full_like(p, group["tau"] ** 2)
        m, v = state["m"], state["v"]
        m.mul_(group["beta1"]).add_(delta, alpha=1 - group["beta1"])
        self.settings.second_moment(v, delta, group)
        p.addcdiv_(m, v.sqrt().add_(group["tau"]), value=-group["lr"])
