"""SOAP as the inner optimizer: Adam in the eigenbasis of Shampoo's preconditioner.

Papers: SOAP (arXiv 2409.11321); Shampoo (arXiv 1802.09568).
    L <- b L + (1 - b) G G^T;  R <- b R + (1 - b) G^T G;  Q_L, Q_R their eigenvectors, renewed every `every_steps`
    theta <- theta - lr Q_L Adam(Q_L^T G Q_R) Q_R^T
G is `p.grad` [rows, columns]; L and R are `GG`, Q_L and Q_R are `Q` ([rows, rows] and [columns, columns], fp32). A side
longer than `largest_dim` has none. The update is pytorch-optimizer's; its first step only fills the preconditioner.
Meta's Distributed Shampoo is in no package registry and needs Python 3.12, so this is the Shampoo of this toolkit.
No bytes of its own: preconditioners stay on their island. Raises ConfigError without that package, or for a bad value.
Deviates: no weight decay on vectors, as with AdamW here.
Reduces to: Adam, for vectors and with `largest_dim` 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from lowcomm.island.inner import Inner, check_rates, decay_groups, load_pytorch_optimizer
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Soap(Inner):
    """Shampoo's preconditioner with Adam inside."""

    shards = "none"
    lr: float = 3e-3
    """Peak inner learning rate (no unit), on AdamW's scale."""
    beta1: float = 0.95
    """Decay of the first moment, 0 <= beta1 < 1."""
    beta2: float = 0.95
    """Decay of the second moment and of the preconditioner, 0 <= beta2 < 1."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices (no unit)."""
    every_steps: int = 10
    """Inner steps between two renewals of the eigenbasis."""
    largest_dim: int = 4096
    """Elements: sides longer than this have no preconditioner: it takes its square in memory, and its cube in time."""

    def build(self, model: nn.Module) -> Optimizer:
        return load_pytorch_optimizer().SOAP(
            decay_groups(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            shampoo_beta=self.beta2,
            precondition_frequency=self.every_steps,
            max_precondition_dim=self.largest_dim,
        )

    def check(self) -> None:
        check_rates(self.lr, {"beta1": self.beta1, "beta2": self.beta2}, self.weight_decay)
        for name, value in (("every_steps", self.every_steps), ("largest_dim", self.largest_dim)):
            require(value >= 1, f"inner.optimizer.{name}", value, "1 or more", "leave it out")
        load_pytorch_optimizer()
