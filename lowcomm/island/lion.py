"""Lion as the inner optimizer.

Paper: Symbolic Discovery of Optimization Algorithms (arXiv 2302.06675).
    c = beta1 m + (1 - beta1) g;  theta <- theta - lr (sign(c) + weight_decay theta);  m <- beta2 m + (1 - beta2) g
g is `p.grad`, m is `exp_avg` (shape and dtype of the parameter). The update is pytorch-optimizer's.
No bytes of its own: the moment stays on its island. Raises ConfigError without that package, or for a bad value.
Deviates: no weight decay on vectors, as with AdamW here.
Reduces to: sign descent (signSGD) with beta1 = beta2 = 0 and no weight decay.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from lowcomm.island.inner import Inner, check_rates, decay_groups, load_pytorch_optimizer


@dataclass(frozen=True, kw_only=True)
class Lion(Inner):
    """Lion: steps of one size, one moment instead of two."""

    lr: float = 3e-4
    """Peak inner learning rate (no unit): a third to a tenth of AdamW's, since every entry moves by it."""
    beta1: float = 0.9
    """Share of the moment in the sign that is applied, 0 <= beta1 < 1."""
    beta2: float = 0.99
    """Decay of the moment, 0 <= beta2 < 1."""
    weight_decay: float = 1.0
    """Decoupled weight decay on matrices (no unit): as much larger than AdamW's as the rate is smaller."""

    def build(self, model: nn.Module) -> Optimizer:
        groups = decay_groups(model, self.weight_decay)
        return load_pytorch_optimizer().Lion(groups, lr=self.lr, betas=(self.beta1, self.beta2))

    def check(self) -> None:
        check_rates(self.lr, {"beta1": self.beta1, "beta2": self.beta2}, self.weight_decay)
        load_pytorch_optimizer()
