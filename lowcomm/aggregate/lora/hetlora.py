"""HetLoRA: clients of unequal ranks, zero-padded, weighted by the size of their dW; clients prune their own rank.

Cho et al., HetLoRA, arXiv 2401.06432.

    w_k = p_k ||s_k B_k A_k||_F / sum_j p_j ||s_j B_j A_j||_F
    A = sum_k w_k pad(A_k),   B = sum_k w_k pad(B_k);    client k gets the first r_k rows of A and columns of B
    pruning: r_k <- gamma r_k if sum_layers ||B_k[:, gamma r_k:]|| ||A_k[gamma r_k:]|| is smaller after a client's
    local steps than it was in what it got; gamma r_k is rounded down, 1 at least

With a `gamma` every client decides so in every round. It sends the rows that are left in that same round, trains and
gets no more from then on, and its rank never grows again. The ranks are in the log, the metrics and the checkpoint. In
the first round nobody prunes, as B was 0.
Shapes and dtypes: those of `adapter`, fp32; the norms from r x r products in fp64, those of last rows in fp64.
Bytes: 4 r_k (in + out) up and down per layer and client with a gamma, and 8 for the rank; without one, inside a run,
those of `rank` for all, as zeros are sent as well.
Aggregates: s B A of the weighted means; the error against sum_k p_k s_k B_k A_k is reported, as it is FedIT's and more.
Raises: ConfigError for a gamma out of range; with a gamma for a codec that keeps a state, whose shapes would change.
Deviates: p_k (tokens) is part of the weight, where the paper has equal clients; factors are brought to one scale
before they are averaged; a client's scale stays that of the rank it began with, or what pruning leaves would grow. The
regulariser of the local loss is `local.RankDecay`, of the same gamma. There is no server in a run: every client gets
what each has sent.
Reduces to: FedIT, for equal ||dW_k||; fixed ranks (`ranks`) for gamma None.
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

    gamma: float | None = None
    """Part of its rank that a client keeps when the rows behind it have become lighter, below 1; None: ranks stay."""

    @property
    def shrinks(self) -> bool:
        return self.gamma is not None

    def next_rank(self, after: Sequence[Adapter], before: Sequence[Adapter]) -> int:
        return before[0].rank if self.gamma is None else next_rank(after, before, self.gamma)

    def check(self) -> None:
        super().check()
        ok = self.gamma is None or 0 < self.gamma < 1
        legal, fix = "0 < gamma < 1, or None", "0.99 is the paper's, None prunes nothing"
        require(ok, "sync.aggregator.gamma", self.gamma, legal, fix)

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


def next_rank(after: Sequence[Adapter], before: Sequence[Adapter], gamma: float) -> int:
    """A client's next rank: `kept` if the last rows of all layers together carry less than in `before`."""
    rank = before[0].rank
    return kept(rank, gamma) if sum(tail(x, gamma) for x in after) < sum(tail(x, gamma) for x in before) else rank


def pruned(adapter: Adapter, before: Adapter, gamma: float) -> Adapter:
    """`adapter` without its last rows if training made them lighter than in `before`; dW of the others is unchanged.

    Its scale stays what it was: alpha / r of the new rank would make what is left larger.
    """
    return adapter.cut(next_rank([adapter], [before], gamma))
