"""FFA-LoRA: A is frozen at its common first value, B is trained and averaged.

Sun et al., FFA-LoRA, arXiv 2403.12313.

    B = sum_k p_k B_k,   A = A_0    =>   s B A = sum_k p_k s B_k A_0, exactly

Shapes and dtypes: those of `adapter`, fp32. Bytes: 4 r out up and down per layer and client: half for square layers.
Aggregates: sum_k p_k s_k B_k A_k, exactly, at equal ranks.
Raises: ConfigError for unequal ranks, or adapters whose A is trainable (freeze it when the model is built).
Deviates: weights are tokens.
Reduces to: the plain mean over B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.aggregate.lora.adapter import Adapter
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish, naive
from lowcomm.types import ConfigError, Round, require


@dataclass(frozen=True, kw_only=True)
class FFA(LoraRule):
    """Only B is trained and averaged."""

    needs: ClassVar[Literal["sum", "each"]] = "sum"
    factors: ClassVar[frozenset[str]] = frozenset("B")

    def check(self) -> None:
        super().check()
        require(self.ranks is None, "sync.aggregator.ranks", self.ranks, "None: FFA shares one A", "use FlexLoRA")

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        if any(x.a.shape != before.a.shape or not bool((x.a == before.a).all()) for x in adapters):
            raise ConfigError("FFA found a client whose A is not the common one. Fix: freeze A before training")
        mean = naive(self, adapters, weights)
        server = Adapter(a=before.a, b=mean.b, scale=mean.scale)
        return finish(self, adapters, weights, server, up="b", down="b")
