"""Variance-corrected averaging: a mean of replicas that are apart is too flat, and gets their spread back.

Seed paper 19 of the specifications, by its description there.

    m = x_k + gamma sum_j W_kj (x_j - x_k);   v = sum_i w_i var(x_i)    (own weight w_k = 1 - gamma sum_j W_kj)
    per tensor:  m <- mean(m) + (m - mean(m)) r,   r = sqrt(v / var(m)) in [1, `most`]

x_i: the weights of the island and of the neighbours that it heard; mean and var are over the entries of one tensor.
One vector per message, in fp32. Tensors of fewer than two dimensions (norms, biases, scalars) are left as they are.
Averaging shrinks independent entries by the root of how many there are; replicas of one run agree in most of what they
have, and r is then near 1.
State: none.
Raises: ConfigError for a bound below 1.
Reduces to: `PlainMixing` for equal replicas (r = 1), and for most = 1, bit for bit.
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
class VarianceCorrected(Rule):
    """The mean, spread as wide as what it is the mean of."""

    most: float = 2.0
    """Largest factor on a tensor's spread (no unit), 1 or more."""

    whole: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return (place.anchor - place.delta,)

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        own, shares = place.anchor - place.delta, [one.weight * place.gamma for one in heard]
        wanted = [(1 - sum(shares)) * _variances(place, own)]
        for one, share in zip(heard, shares, strict=True):
            place.delta.sub_(one.differences[0], alpha=share)
            wanted.append(share * _variances(place, own + one.differences[0]))
        if self.most == 1 or not heard:
            return
        mixed = place.anchor - place.delta
        ratios = (sum(wanted, torch.zeros(())) / _variances(place, mixed)).sqrt()
        moved = place.views(place.delta)
        for (name, view), ratio in zip(place.views(mixed).items(), ratios.tolist(), strict=True):
            if view.ndim >= 2 and math.isfinite(ratio) and ratio > 1:
                moved[name].sub_(view - view.mean(), alpha=min(ratio, self.most) - 1)

    def check(self) -> None:
        ok = 1 <= self.most < math.inf
        require(ok, "sync.exchange.rule.most", self.most, "a finite number, 1 or more", "2.0")


def _variances(place: Place, flat: Tensor) -> Tensor:
    """Of each tensor's entries, fp32 [tensors]."""
    return torch.stack([view.var(correction=0) for view in place.views(flat).values()])
