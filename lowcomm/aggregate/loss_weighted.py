"""The base of rules that weigh islands by their losses, so that none is left behind.

    D = sum_k p_k D_k,    p_k ~ tokens_k f_k,    f_k = factor of island k by the losses

An island says its mean training loss of the round (nats per token) and its tokens beside its Delta, 16 B in the roll
call; it multiplies the tokens that it weighs by with its own factor, so that sums on the way stay as they are.
What a rule remembers is equal on all islands and in the checkpoint. Losses are believed: these rules are for sites that
trust each other, as one that says a large loss weighs much. In a loop of one's own, `count_loss` says the losses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.aggregate.base import Aggregator
from lowcomm.aggregate.mean import Mean
from lowcomm.types import Contribution, Delta

Learnt = dict[str, list[float]]
"""What a rule remembers: numbers by island or group."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an island said in a committed round."""

    loss: float
    """Mean of its inner steps' losses, nats per token."""
    tokens: float
    """Trained since its last sync."""


@dataclass(frozen=True, kw_only=True)
class LossWeighted(Aggregator):
    """A mean whose weights follow the losses."""

    needs: ClassVar[Literal["sum", "each"]] = "sum"

    @abstractmethod
    def factor(self, island: int, loss: float, learnt: Learnt) -> float:
        """f_k: a finite number above 0 for an island's loss in this round and what was learnt in those before."""

    def learn(self, said: Mapping[int, Said], learnt: Learnt, islands: int) -> Learnt:
        """What is remembered after a round. said: of those that counted, by island. The same bits everywhere."""
        return learnt

    def weights(self, tokens: Sequence[float]) -> list[float]:
        return Mean().weights(tokens)

    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        return Mean()(contributions)
