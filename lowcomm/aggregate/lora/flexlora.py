"""FlexLoRA: the exact sum, cut to each client's rank by an SVD, singular values in B.

Bai et al., FlexLoRA, arXiv 2402.11505.

    sum_k p_k s_k B_k A_k = U S V^T,    B = U_r S_r / s,   A = V_r^T       (r: the client's rank, s: its scale)

Shapes and dtypes: U [out, r], S [r], V [in, r]; fp64 inside, fp32 out. The sum is never a matrix (`svd`).
Bytes: 4 r_k (in + out) up and down per layer and client.
Aggregates: the best approximation of sum_k p_k s_k B_k A_k of rank `rank` (Eckart-Young), exact for rank >= sum_k r_k.
Raises: nothing of its own.
Deviates: QR of the stacked factors in place of the dense sum; alpha / r of each client is part of the sum.
Reduces to: exact, for rank >= sum_k r_k; one client => its own dW in another basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowcomm.aggregate.lora.adapter import Adapter, target
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish
from lowcomm.aggregate.lora.svd import truncated
from lowcomm.types import Round


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(LoraRule):
    """The exact sum at the best rank-r approximation."""

    regauges: ClassVar[bool] = True

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        left, s, right = truncated(target(adapters, weights), self.rank)
        server = Adapter(a=right.to(before.a.dtype), b=(left * (s / self.scale)).to(before.b.dtype), scale=self.scale)
        return finish(self, adapters, weights, server)
