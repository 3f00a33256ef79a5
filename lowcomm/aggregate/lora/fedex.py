"""FedEx-LoRA: means of A and of B, and what they miss is added to the frozen base weight.

Singhal et al., FedEx-LoRA, arXiv 2410.09432.

    A = sum_k p_k A_k,   B = sum_k p_k B_k,   W <- W + R,   R = sum_k p_k s_k B_k A_k - s B A

R has the orientation of dW [out, in]; a layer that keeps its weight as [in, out] (Conv1D, embeddings) adds R^T, and no
other does: transposing it for a Linear gives a relative error of 1.1, worse than none at all.
Shapes and dtypes: R as its factors, [out, sum r_k + r] and [sum r_k + r, in], fp32; made dense only where it is added.
Bytes: 4 r_k (in + out) up; 4 (sum_k r_k + 2 r)(in + out) down per layer and client.
Aggregates: sum_k p_k s_k B_k A_k, exactly.
Raises: ConfigError for a base weight that another layer shares (tied).
Deviates: weights are tokens; unequal ranks and scales are allowed.
Reduces to: FedIT where A or B is shared: R = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowcomm.aggregate.lora.adapter import Adapter, target
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish, naive
from lowcomm.types import Round


@dataclass(frozen=True, kw_only=True)
class FedEx(LoraRule):
    """Means of both factors, the exact rest into the base weight."""

    moves_base: ClassVar[bool] = True

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        server = naive(self, adapters, weights)
        residual = target(adapters, weights) - server.product
        return finish(self, adapters, weights, server, residual, down_bytes=server.nbytes() + residual.nbytes)
