"""FedYogi: Yogi on the pseudo-gradient.

Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295, Algorithm 2.

    m_t = beta1 * m_{t-1} + (1 - beta1) * Delta_t
    v_t = v_{t-1} - (1 - beta2) * Delta_t^2 * sign(v_{t-1} - Delta_t^2)
    x_{t+1} = x_t - lr * m_t / (sqrt(v_t) + tau)          v_0 = tau^2, no bias correction

Delta has gradient sign here, so that the paper's plus is our minus.
Shapes and dtypes: those of the global weights, fp32. State: m and v, 8 B per parameter, on the outer device.
Cost on the wire: none of its own.
Reduces to: tau -> infinity with lr = c * tau, beta1 = 0 => outer SGD of rate c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.outer.base import Outer, check_lr, check_unit
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class FedYogi(Outer):
    """Yogi on the pseudo-gradient."""

    lr: float = 0.01
    """Outer learning rate (no unit)."""
    beta1: float = 0.9
    """Decay of the first moment (no unit), 0 <= beta1 < 1."""
    beta2: float = 0.99
    """Decay of the second moment (no unit), 0 <= beta2 < 1."""
    tau: float = 1e-3
    """Adaptivity floor, in the unit of Delta: larger is closer to SGD."""

    def build(self, params: Sequence[Tensor]) -> Optimizer:
        return FedYogiOptimizer(params, self)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
        check_unit("sync.outer.beta1", self.beta1)
        check_unit("sync.outer.beta2", self.beta2)
        require(self.tau > 0, "sync.outer.tau", self.tau, "above 0", "1e-3 is the paper's default")


class FedYogiOptimizer(Optimizer):
    """The update above over `params`; `p.grad` holds Delta."""

    def __init__(self, params: Sequence[Tensor], settings: FedYogi) -> None:
        super().__init__(
            params, {"lr": settings.lr, "beta1": settings.beta1, "beta2": settings.beta2, "tau": settings.tau}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One outer step; closures are not supported (the Delta is already there)."""
        if closure is not None:
            raise ValueError("an outer optimizer takes no closure: set p.grad to the aggregated Delta")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, delta: Tensor, group: dict[str, float]) -> None:
        state = self.state[p]
        if not state:
            state["m"] = torch.zeros_like(p)
            state["v"] = torch.full_like(p, group["tau"] ** 2)
        m, v = state["m"], state["v"]
        m.mul_(group["beta1"]).add_(delta, alpha=1 - group["beta1"])
        square = delta * delta
        v.addcmul_(square, torch.sign(v - square), value=group["beta2"] - 1)
        p.addcdiv_(m, v.sqrt().add_(group["tau"]), value=-group["lr"])
