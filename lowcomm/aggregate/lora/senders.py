"""The mean of each tensor over the islands that sent it; nobody sent it => it stays as it is.

    Delta[name] = sum_{k in S} p_k Delta_k[name] / sum_{k in S} p_k,    S: the islands whose payload holds `name`

For codecs that send some of the tensors: `LargestLayers` (selective layers), and below FedSA and FedRand.
Shapes and dtypes: those of the contributions, fp32. Bytes: those of the codec.
Aggregates: the means of A and of B over their senders, as FedIT does over all.
Raises: ValueError without contributions.
Reduces to: FedIT, if all send everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.lora.adapter import Adapter
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish, naive
from lowcomm.types import Contribution, Delta, Round


@dataclass(frozen=True, kw_only=True)
class SenderMean(LoraRule):
    """Each tensor's mean over who sent it."""

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        return Aggregate(delta=mean_over_senders(contributions, context.start))

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        """As if all had sent both factors."""
        return finish(self, adapters, weights, naive(self, adapters, weights))


def mean_over_senders(contributions: Sequence[Contribution], like: Delta) -> Delta:
    """The mean of each tensor over who sent it, in island order, product and sum rounded apart; zeros if nobody did."""
    if not contributions:
        raise ValueError("no contribution to aggregate")
    delta: Delta = {}
    for name, view in like.items():
        sent = [c for c in contributions if name in c.delta]
        total = sum(c.weight for c in sent)
        mean = torch.zeros_like(view)
        for c in sent:
            if total > 0:
                mean.add_(c.delta[name] * (c.weight / total))
        delta[name] = mean
    return delta
