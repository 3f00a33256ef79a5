"""Generalised primal averaging inside: DiLoCo's averaged iterate at every step, without rounds.

GPA, arXiv 2512.17131.

    z <- z - lr dir(y),   x <- mu_x x + (1 - mu_x) z,   y <- mu_y x + (1 - mu_y) z;   gradients are taken at y

dir: AdamW's direction, decoupled decay included; mu_x: `average`, mu_y: `at`. The parameters are y. As mu_y (y - x)
= (1 - mu_y) (z - y), one buffer d = z - y (shape and dtype of the parameter) holds both others; with u = lr dir(y):

    d' = mu_x d - mu_x mu_y u,   y' = y - u + d - d'

so that a sync, which writes new parameters, moves all three iterates alike and keeps d as it keeps moments.
No bytes of its own: d stays on its island. Raises ConfigError for a value out of range.
Deviates: evaluated and averaged over islands is y, not x; no weight decay on vectors, as with AdamW here.
Reduces to: AdamW for mu_x = 0, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lowcomm.island.combined import Combined
from lowcomm.island.inner import AdamW, Inner, check_rates
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Gpa(Inner):
    """AdamW's steps, taken beside a running mean of them."""

    lr: float = 3e-3
    """Peak inner learning rate (no unit)."""
    average: float = 0.97
    """mu_x: share of the old mean in the new one, 0 <= average < 1; about 1 - 1 / H of the DiLoCo that it replaces."""
    at: float = 0.9
    """mu_y: how near to the mean gradients are taken, 0 < at <= 1."""
    beta1: float = 0.9
    """Decay of the first moment, 0 <= beta1 < 1."""
    beta2: float = 0.95
    """Decay of the second moment, 0 <= beta2 < 1."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices (no unit)."""

    def build(self, model: nn.Module) -> Optimizer:
        adamw = AdamW(lr=self.lr, beta1=self.beta1, beta2=self.beta2, weight_decay=self.weight_decay)
        return PrimalAveraging(adamw.build(model), average=self.average, at=self.at)

    def check(self) -> None:
        decays = {"average": self.average, "beta1": self.beta1, "beta2": self.beta2}
        check_rates(self.lr, decays, self.weight_decay)
        require(0 < self.at <= 1, "inner.optimizer.at", self.at, "above 0, to 1", "0.9 is usual")


class PrimalAveraging(Combined):
    """Steps of `base` along z; the parameters are y, the state's `d` is z - y."""

    def __init__(self, base: Optimizer, *, average: float, at: float) -> None:
        super().__init__([base])
        self.average, self.at = average, at

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One inner step."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in params] if self.average > 0 else []
        gaps = [self.state[p].get("d") if p in self.state else None for p in params]
        self._share()  # not Combined.step, whose hooks would run a second time
        for part in self.parts:
            part.step()
        for p, old, gap in zip(params, before, gaps, strict=False):
            moved = old.sub_(p)
            d = torch.zeros_like(p) if gap is None else gap
            new = torch.sub(d, moved, alpha=self.at).mul_(self.average)
            p.add_(d).sub_(new)
            self.state[p]["d"] = new
