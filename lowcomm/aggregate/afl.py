"""Agnostic federated learning: the mixture of islands on which the model does worst is the one that it is trained for.

Mohri, Sivek, Suresh, Agnostic federated learning, ICML 2019, arXiv 1902.00146.

    D = sum_k p_k D_k,    p_k ~ tokens_k l_k,    l_k <- l_k exp(eta (F_k - mean F)) after each round

F_k: mean training loss of the round; eta: `lr`; l_k is 1 at first, and kept within 1 / `most` to `most`. Shapes and
dtypes: those of the contributions; one number of state per island. Bytes: as the mean's, and 16 B per island and round.
Raises: ConfigError for settings out of range.
Deviates: the paper ascends by projected gradients, here weights are multiplied, which never leaves the simplex; they
stay relative to the tokens, and are bounded.
Reduces to: the mean by tokens for eta = 0, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lowcomm.aggregate.loss_weighted import Learnt, LossWeighted, Said
from lowcomm.types import require

LOGS = "log_weights"


@dataclass(frozen=True, kw_only=True)
class AFL(LossWeighted):
    """The mean by tokens times a weight that grows while an island's loss is above the others'."""

    lr: float = 0.5
    """eta (per nat): how fast weights follow losses."""
    most: float = 20.0
    """Largest factor of an island's tokens, above 1; its inverse is the smallest."""

    def check(self) -> None:
        require(0 <= self.lr < math.inf, "sync.aggregator.lr", self.lr, "a finite number, 0 or more", "0.5 is usual")
        require(1 < self.most < math.inf, "sync.aggregator.most", self.most, "a finite number above 1", "20 is usual")

    def factor(self, island: int, loss: float, learnt: Learnt) -> float:
        return math.exp(learnt[LOGS][island]) if learnt else 1.0

    def learn(self, said: Mapping[int, Said], learnt: Learnt, islands: int) -> Learnt:
        logs = list(learnt[LOGS]) if learnt else [0.0] * islands
        if not said:
            return {LOGS: logs}
        usual, bound = math.fsum(s.loss for s in said.values()) / len(said), math.log(self.most)
        for k, s in said.items():
            logs[k] = min(bound, max(-bound, logs[k] + self.lr * (s.loss - usual)))
        return {LOGS: logs}
