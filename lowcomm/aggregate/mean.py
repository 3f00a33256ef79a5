"""The token-weighted mean in island order.

McMahan et al., FedAvg, arXiv 1602.05629.

    Delta = sum_k p_k Delta_k,    p_k = tokens_k / sum_j tokens_j

by = "bounded" counts at most `most_tokens` tokens of each island, so that none with much text outweighs the others.
Product and sum are rounded one after the other (no fused multiply-add), in island order: the bits do not depend on
how the vector is cut or on the transport.
Shapes and dtypes: those of the contributions, fp32. Cost on the wire: with fp32 payloads 8 (n - 1) / n B per parameter
and island, sent and received alike.
Raises: ValueError without contributions.
Reduces to: a bound above all tokens => by tokens, below all => uniform; equal tokens => the plain mean; one island =>
the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.aggregate.base import Aggregator
from lowcomm.types import Contribution, Delta, require


@dataclass(frozen=True, kw_only=True)
class Mean(Aggregator):
    """Mean of the pseudo-gradients weighted by trained tokens (or uniform)."""

    by: Literal["tokens", "uniform", "bounded"] = "tokens"
    """Weight of an island: the tokens that it trained since the last sync, the same for each, or bounded tokens."""
    most_tokens: float | None = None
    """With by = "bounded": tokens of an island that count, at most."""

    needs: ClassVar[Literal["sum", "each"]] = "sum"

    def __post_init__(self) -> None:
        known = ("tokens", "uniform", "bounded")
        require(self.by in known, "sync.aggregator.by", self.by, "tokens, uniform or bounded", "use tokens")
        bound = self.most_tokens
        ok = (bound is not None) == (self.by == "bounded") and (bound is None or 0 < bound < math.inf)
        legal = "a finite number above 0 with by = 'bounded', None otherwise"
        require(ok, "sync.aggregator.most_tokens", bound, legal, "the tokens of a usual island in a round")

    @property
    def bounded(self) -> bool:
        return self.by == "uniform"

    def weights(self, tokens: Sequence[float]) -> list[float]:
        bound = math.inf if self.most_tokens is None else self.most_tokens
        raw = [float(t > 0) if self.by == "uniform" else min(float(t), bound) for t in tokens]
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
