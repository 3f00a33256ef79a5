"""The token-weighted mean in island order.

McMahan et al., FedAvg, arXiv 1602.05629.

    Delta = sum_k p_k Delta_k,    p_k = tokens_k / sum_j tokens_j

Product and sum are rounded one after the other (no fused multiply-add), in island order: the bits do not depend on
how the vector is cut or on the transport.
Shapes and dtypes: those of the contributions, fp32. Cost on the wire: with fp32 payloads 8 (n - 1) / n B per parameter
and island, sent and received alike.
Raises: ValueError without contributions.
Reduces to: equal tokens => the plain mean; one island => the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.aggregate.base import Aggregator
from lowcomm.types import Contribution, Delta, require


@dataclass(frozen=True, kw_only=True)
class Mean(Aggregator):
    """Mean of the pseudo-gradients weighted by trained tokens (or uniform)."""

    by: Literal["tokens", "uniform"] = "tokens"
    """Weight of an island: the tokens that it trained since the last sync, or the same for each."""

    needs: ClassVar[Literal["sum", "each"]] = "sum"

    def __post_init__(self) -> None:
        require(self.by in ("tokens", "uniform"), "sync.aggregator.by", self.by, "tokens or uniform", "use tokens")

    @property
    def bounded(self) -> bool:
        return self.by == "uniform"

    def weights(self, tokens: Sequence[float]) -> list[float]:
        raw = [float(t) if self.by == "tokens" else float(t > 0) for t in tokens]
        total = sum(raw)
        if not total > 0:
            raise ValueError("no island trained a token since the last sync: nothing to average")
        return [r / total for r in raw]

    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        if not contributions:
            raise ValueError("no contribution to aggregate")
        mean = {name: d * contributions[0].weight for name, d in contributions[0].delta.items()}
        for c in contributions[1:]:
            for name, d in c.delta.items():
                mean[name].add_(d * c.weight)
        return mean
