"""Label noise: attackers train on targets that are drawn at random.

Fang, Cao, Jia, Gong, Local model poisoning attacks to Byzantine-robust federated learning, arXiv 1911.11815 (compared).

    y'[i] = a random token with probability p, else y[i]

p: `fraction`; drawn from the run's seed, the island and its place in the text, so that a resumed run trains alike. What
is sent is a Delta of honest training on it. In runs of `lowcomm train`: a loop of one's own shuffles its targets
itself. No byte beside the contribution's own. Raises: ConfigError for p out of range.
Deviates: the paper flips labels of classes, here tokens are the classes. Reduces to: no attack for p = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.attack.base import Attack, Seen
from lowcomm.types import IGNORED, require


@dataclass(frozen=True, kw_only=True)
class LabelNoise(Attack):
    """Random targets."""

    fraction: float = 1.0
    """p: fraction of the targets."""

    poisons: ClassVar[bool] = True

    def check(self) -> None:
        ok = 0 < self.fraction <= 1
        require(ok, "sync.attack.fraction", self.fraction, "above 0, at most 1", "1 is all of them")

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return delta

    def poison(self, targets: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
        drawn = torch.randint(vocabulary, targets.shape, generator=generator)
        hit = torch.rand(targets.shape, generator=generator) < self.fraction
        return torch.where(hit & (targets != IGNORED), drawn, targets)
