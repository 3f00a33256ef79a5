"""LoRA-FAIR: means of A and of B, and a correction of B that brings s B A as near to the exact sum as B alone can.

Bian et al., LoRA-FAIR, arXiv 2411.14961.

    A = sum_k p_k A_k,   B = sum_k p_k B_k,   B' = B + dB
    dB = argmin ||sum_k p_k s_k B_k A_k - s (B + dB) A||_F^2 + mu ||s dB||_F^2
       = (sum_k p_k s_k B_k (A_k A^T) - s B (A A^T)) (A A^T + mu I)^-1 / s,     mu = penalty * tr(A A^T) / r

Shapes and dtypes: dB [out, r]; only r_k x r products are made, in fp64. Bytes: 4 r_k (in + out) up and down per layer.
Aggregates: s B' A; its error is at most FedIT's and is reported.
Raises: ConfigError for a penalty that is not above 0.
Deviates: the paper minimises a cosine distance plus a norm of dB by gradient descent; here it is least squares, which
has this closed form. The start that the paper advises (go on from the averages) is what a sync does anyway.
Reduces to: FedIT for penalty -> infinity; exact where all clients share A; the best B for this A for penalty -> 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lowcomm.aggregate.lora.adapter import Adapter, target
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish, naive
from lowcomm.types import Round, require


@dataclass(frozen=True, kw_only=True)
class LoraFair(LoraRule):
    """Means of both factors, B corrected."""

    penalty: float = 0.01
    """Weight of ||dB||^2 beside the error, in units of A's mean squared row norm."""

    def check(self) -> None:
        super().check()
        require(self.penalty > 0, "sync.aggregator.penalty", self.penalty, "above 0", "0.01 is the paper's")

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        mean = naive(self, adapters, weights)
        a = mean.a.double()
        missing = target(adapters, weights) - mean.product
        off = missing.b.double() @ (missing.a.double() @ a.T)  # [out, r]
        gram = a @ a.T
        mu = self.penalty * float(gram.trace()) / self.rank
        if mu == 0:
            return finish(self, adapters, weights, mean)
        step = torch.linalg.solve(gram + mu * torch.eye(self.rank, dtype=a.dtype, device=a.device), off.T).T
        corrected = (mean.b.double() + step / self.scale).to(mean.b.dtype)
        return finish(self, adapters, weights, Adapter(a=mean.a, b=corrected, scale=self.scale))
