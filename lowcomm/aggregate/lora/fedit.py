"""FedIT: means of A and of B, apart (the naive rule), with its error reported each round.

Zhang et al., FedIT, arXiv 2305.05644.

    A = sum_k p_k A_k,   B = sum_k p_k B_k        (B_k brought to one scale, lower ranks filled up with zeros)

Shapes and dtypes: those of `adapter`, fp32. Bytes: 4 r (in + out) up and down per layer and client.
Aggregates: s B A, which is off sum_k p_k s B_k A_k by sum_k p_k s (B_k - B)(A_k - A): about 0.8 of it for random ones.
Raises: ConfigError for a layer with one factor only.
Deviates: weights are tokens; clients of unequal ranks are filled up with zeros at one scale, so that dW keeps its size.
Reduces to: exact when all clients share A or share B; one client => the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.aggregate.lora.adapter import Adapter
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish, naive
from lowcomm.types import Round


@dataclass(frozen=True, kw_only=True)
class FedIT(LoraRule):
    """The naive mean of both factors, its error reported."""

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        return finish(self, adapters, weights, naive(self, adapters, weights))
