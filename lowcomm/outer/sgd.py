"""Outer SGD: the weighted mean of the islands' weights at lr = 1 (FedAvg, local SGD).

McMahan et al., arXiv 1602.05629; Stich, arXiv 1805.09767.

    x_{t+1} = x_t - lr * Delta_t

Shapes and dtypes: those of the global weights, fp32. State: none.
Cost on the wire: none of its own (4 B per parameter with fp32 payloads, each way).
Reduces to: lr = 1 => x_{t+1} is the weighted mean of the islands' weights; with H = 1 and inner SGD of rate a,
synchronous SGD of rate a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.outer.base import Outer, check_lr


@dataclass(frozen=True, kw_only=True)
class SGD(Outer):
    """Averaging: x <- x - lr * Delta (FedAvg at lr = 1)."""

    lr: float = 1.0
    """Outer learning rate (no unit): 1 moves all the way to the islands' mean."""

    def build(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=self.lr, fused=True)

    def check(self) -> None:
        check_lr("sync.outer", self.lr)
