"""HetLoRA: clients of unequal ranks, zero-padded, weighted by the size of their dW; clients prune their own rank.

Cho et al., HetLoRA, arXiv 2401.06432.

    w_k = p_k ||s_k B_k A_k||_F / sum_j p_j ||s_j B_j A_j||_F
    A = sum_k w_k pad(A_k),   B = sum_k w_k pad(B_k);    client k gets the first r_k rows of A and columns of B
    pruning: the last rows beyond gamma r go where ||B[:, gamma r:]|| ||A[gamma r:]|| has become smaller than it was

Shapes and dtypes: those of `adapter`, fp32; the norms from r x r products in fp64.
Bytes: 4 r_k (in + out) up and down per layer and client.
Aggregates: s B A of the weighted means; the error against sum_k p_k s_k B_k A_k is reported, as it is FedIT's and more.
Raises: ConfigError for a gamma out of range.
Deviates: p_k (tokens) is part of the weight, where the paper has equal clients; factors are brought to one scale
before they are averaged. The regulariser of the local loss is `local.RankDecay`. Inside a run ranks are fixed
(`ranks`); `pruned` is for loops of one's own.
Reduces to: FedIT, for equal ||dW_k||; gamma = 1 prunes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.aggregate.lora.adapter import Adapter
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish, naive
from lowcomm.types import Round, require


@dataclass(frozen=True, kw_only=True)
class HetLoRA(LoraRule):
    """Zero-padded means, weighted by the size of each client's dW."""

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        return finish(self, adapters, weights, naive(self, adapters, sparsity_weights(adapters, weights)))


def sparsity_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> list[float]:
    """Weights in proportion to p_k ||dW_k||_F, summing to 1; p_k themselves if every dW is 0."""
    sizes = [p * x.product.norm() if p != 0 else 0.0 for x, p in zip(adapters, weights, strict=True)]
    total = sum(sizes)
    return [size / total for size in sizes] if total > 0 else list(weights)


def tail(adapter: Adapter, gamma: float) -> float:
    """||B[:, gamma r:]||_F ||A[gamma r:]||_F: what the last rows carry."""
    first = kept(adapter.rank, gamma)
    return float(adapter.b[:, first:].double().norm() * adapter.a[first:].double().norm())


def kept(rank: int, gamma: float) -> int:
    """Rows that are left of `rank` after pruning: at least one."""
    require(0 < gamma <= 1, "gamma", gamma, "0 < gamma <= 1", "0.99 is the paper's")
    return max(1, int(gamma * rank))


def pruned(adapter: Adapter, before: Adapter, gamma: float) -> Adapter:
    """`adapter` without its last rows if training made them lighter than in `before`; dW of the others is unchanged.

    Its scale stays what it was: alpha / r of the new rank would make what is left larger.
    """
    return adapter.cut(kept(adapter.rank, gamma)) if tail(adapter, gamma) < tail(before, gamma) else adapter
