"""NoLoCo: an outer momentum over a small group, with a term that pulls the group's weights together.

Kolehmainen et al., NoLoCo: No-all-reduce Low Communication Training Method for Large Models, arXiv 2506.10911; the
equation is written from memory of the paper.

    d_k <- alpha d_k - beta sum_j W_kj D_j - gamma_n (a_k - sum_j W_kj a_j);   a_k <- a_k + d_k

a_k: `place.anchor`, the paper's phi; D: pseudo-gradients (`anchor - local`); sums over the group and oneself, of equal
weights for a pair; alpha, beta, gamma_n: `momentum`, `lr`, `pull`. Without the last term islands that are drawn into
pairs by chance drift apart. With it e = a_k - mean(a) and d obey, for many islands in independent pairs,

    E d'^2 = alpha^2 E d^2 - alpha gamma_n E e d + gamma_n^2 / 2 E e^2,   e' = e + d'

which shrinks for 0 < gamma_n < 2 (1 - alpha^2): worked out here, and what `check` asks for.
Two vectors per message, anchor and pseudo-gradient, in fp32 (the paper sends the first while it trains).
State: d_k, 4 bytes per parameter.
Raises: ConfigError for settings out of these bounds.
Deviates: the bound on gamma_n is our own.
Reduces to: `HeavyBall(lr=beta, momentum=alpha)` under FedAvg with uniform weights, for all with all, whose anchors are
equal, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.mixing.base import Heard, Place, Rule
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class NoLoCo(Rule):
    """Momentum over pairs, and a pull together."""

    lr: float = 0.7
    """beta: outer learning rate (no unit), above 0."""
    momentum: float = 0.5
    """alpha: outer momentum (no unit), 0 to below 1."""
    pull: float = 0.5
    """gamma_n: how strongly weights of a group are pulled together (no unit), above 0, below 2 (1 - momentum^2)."""

    vectors: ClassVar[int] = 2
    whole: ClassVar[bool] = True

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return place.anchor.clone(), place.delta.clone()

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        step = place.state.get("noloco.step")
        step = torch.zeros_like(place.delta) if step is None else step.mul_(self.momentum)
        step.sub_(place.delta, alpha=self.lr)
        for one in heard:
            weights, deltas = one.differences
            step.sub_(deltas, alpha=self.lr * one.weight)
            step.add_(weights, alpha=self.pull * one.weight)
        place.state["noloco.step"] = step
        place.delta.copy_(step).neg_()

    def check(self) -> None:
        name = "sync.exchange.rule"
        require(0 < self.lr < math.inf, f"{name}.lr", self.lr, "a finite number above 0", "0.7")
        require(0 <= self.momentum < 1, f"{name}.momentum", self.momentum, "0 <= value < 1", "0.5")
        high = 2 * (1 - self.momentum**2)
        legal = f"above 0 and below 2 (1 - momentum^2) = {high:.3g}, or islands drift apart"
        require(0 < self.pull < high, f"{name}.pull", self.pull, legal, "0.5 with a momentum of 0.5")
