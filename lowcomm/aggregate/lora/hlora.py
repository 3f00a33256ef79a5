"""HLoRA: the sum is rebuilt, taken apart by an SVD, and handed to clients of any rank, both factors of one size.

Liu et al., HLoRA, arXiv 2503.00813.

    sum_k p_k s_k B_k A_k = U S V^T,    B = U_r sqrt(S_r / s),   A = sqrt(S_r / s) V_r^T

Shapes and dtypes: as FlexLoRA. Bytes: 4 r_k (in + out) up and down per layer and client.
Aggregates: what FlexLoRA does; the factors are balanced, so that neither gets tiny gradients.
Raises: nothing of its own.
Deviates: s_k = alpha / r_k is part of the sum: without it clients of unequal ranks count by their scale. QR of the
stacked factors in place of the dense sum.
Reduces to: FlexLoRA's dW, in another basis.
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
class HLoRA(LoraRule):
    """The exact sum at the best rank-r approximation, in balanced factors."""

    regauges: ClassVar[bool] = True

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        left, s, right = truncated(target(adapters, weights), self.rank)
        root = (s / self.scale).sqrt()
        a, b = (root[:, None] * right).to(before.a.dtype), (left * root).to(before.b.dtype)
        return finish(self, adapters, weights, Adapter(a=a, b=b, scale=self.scale))
