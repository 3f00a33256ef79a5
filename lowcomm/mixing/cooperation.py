"""SCooL: each island learns with whom to cooperate, from how alike their pseudo-gradients are.

Zhou et al., Structured Cooperative Learning with Graphical Model Priors, arXiv 2306.09595, its attention form, with
cosines in place of losses on each other's text.

    Y_kj <- memory Y_kj + (1 - memory) cos(D_k, D_j);   W_k = softmax_j(Y_kj / scale) over the neighbours heard and k
    a_k <- a_k - sum_j W_kj D_j;   shares below `least` of the largest are set to 0, the rest sums to 1

D: pseudo-gradients; Y_kk = 1. Each island ends with weights of its own: their mean, which is evaluated and exported,
means little where the islands' text differs (`eval.clients` shows each).
One vector per message, in fp32; no mixing of weights, so anchors part and stay apart.
State: Y, one number per island.
Raises: ConfigError for settings out of range.
Deviates: no block model; cosines, not the K^2 evaluations of the paper, which cost a pass over held-out text each; the
Deltas are taken from each island's own anchor.
Reduces to: FedAvg with uniform weights for all with all and scale to infinity, up to rounding; local training for scale
to 0.
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
class Cooperation(Rule):
    """Softmax weights over those whose pseudo-gradients point where one's own does."""

    scale: float = 0.1
    """Temperature of the softmax over cosines (no unit), above 0; large: all alike."""
    memory: float = 0.5
    """Share of what was known of a neighbour before (no unit), 0 to below 1."""
    least: float = 0.0
    """Neighbours with less than this share of the largest weight are left out, 0 to 1."""

    whole: ClassVar[bool] = True

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return (place.delta.clone(),)

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        own = place.delta.clone()
        known = place.state.setdefault("cooperation.cosines", torch.full((place.islands,), math.nan))
        logits = [1.0]
        for one in heard:
            cosine = float(torch.nn.functional.cosine_similarity(own, own + one.differences[0], dim=0, eps=1e-30))
            before = float(known[one.island])
            value = cosine if math.isnan(before) else self.memory * before + (1 - self.memory) * cosine
            known[one.island] = value
            logits.append(value)
        shares = torch.softmax(torch.tensor(logits, dtype=torch.float64) / self.scale, dim=0)
        shares[shares < self.least * shares.max()] = 0.0
        shares /= shares.sum()
        for one, share in zip(heard, shares[1:].tolist(), strict=True):
            place.delta.add_(one.differences[0], alpha=share)

    def check(self) -> None:
        name = "sync.exchange.rule"
        require(0 < self.scale < math.inf, f"{name}.scale", self.scale, "a finite number above 0", "0.1")
        require(0 <= self.memory < 1, f"{name}.memory", self.memory, "0 <= value < 1", "0.5")
        require(0 <= self.least <= 1, f"{name}.least", self.least, "0 to 1", "0 leaves none out")
