"""FedAdagrad: Adagrad on the pseudo-gradient.

Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295, Algorithm 2.

    m_t = beta1 * m_{t-1} + (1 - beta1) * Delta_t
    v_t = v_{t-1} + Delta_t^2
    x_{t+1} = x_t - lr * m_t / (sqrt(v_t) + tau)          v_0 = tau^2, no bias correction

Delta has gradient sign here, so that the paper's plus is our minus.
Shapes and dtypes: those of the global weights, fp32. State: m and v, 8 B per parameter, on the outer device.
Cost on the wire: none of its own.
Reduces to: tau -> infinity with lr = c * tau, beta1 = 0 => outer SGD of rate c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lowcomm.outer.adaptive import Adaptive


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(Adaptive):
    """Adagrad on the pseudo-gradient."""

    lr: float = 0.1
    """Outer learning rate (no unit)."""
    beta1: float = 0.0
    """Decay of the first moment (no unit), 0 <= beta1 < 1."""
    tau: float = 1e-3
    """Adaptivity floor, in the unit of Delta: larger is closer to SGD."""

    def second_moment(self, v: Tensor, delta: Tensor, group: Mapping[str, float]) -> None:
        v.addcmul_(delta, delta)
