"""SAVIC inside: steps scaled by one diagonal that stays as it is within a round.

Chezhegov et al., Local methods with adaptivity via scaling, arXiv 2406.00846.

    every S-th step:  D^2 <- b_t D^2 + (1 - b_t) g^2;   each step:  m <- beta1 m + g,   x <- x - lr m / max(alpha, D)
    Adam: b_t = (b - b^t) / (1 - b^t), t = 1, 2, ...: this renewal; RMSProp: b_t = b

S: `scale_every`, the H of the sync: a renewal with the first step of each round; b: `beta2`; alpha: `floor`. D^2 is
`exp_avg_sq`, m is `exp_avg` (shape and dtype of the parameter). With
`sync.moments = DesLoc(first_every=None, second_every=1)` all islands have one D from the next round on, as in the
paper; without it each has its own.
No bytes of its own. Raises ConfigError for a value out of range.
Deviates: D is renewed from islands' own gradients and then averaged; decoupled weight decay, none on vectors; no OASIS
scaling, which needs products with the Hessian.
Reduces to: SGD with momentum for a floor above every D, at lr / floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.island.inner import Inner, check_rates, decay_groups
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Savic(Inner):
    """Momentum over a diagonal that is renewed once in a round."""

    lr: float = 1e-3
    """Peak inner learning rate (no unit)."""
    scale_every: int = 32
    """S: inner steps between two renewals of the scaling, 1 or more."""
    scaling: Literal["adam", "rmsprop"] = "adam"
    """How fast early renewals move it: as fast as Adam's debiased moment, or always alike."""
    beta1: float = 0.9
    """Decay of the momentum, 0 <= beta1 < 1."""
    beta2: float = 0.95
    """Decay of the squared scaling, 0 <= beta2 < 1."""
    floor: float = 1e-4
    """alpha: least scaling, in the unit of gradients, above 0."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices (no unit)."""

    def build(self, model: nn.Module) -> Optimizer:
        return ScaledDescent(decay_groups(model, self.weight_decay), self)

    def check(self) -> None:
        check_rates(self.lr, {"beta1": self.beta1, "beta2": self.beta2}, self.weight_decay)
        every, floor = self.scale_every, self.floor
        require(every >= 1, "inner.optimizer.scale_every", every, "1 or more", "sync.every is usual")
        require(0 < floor < float("inf"), "inner.optimizer.floor", floor, "a finite number above 0", "1e-4 is usual")
        known = ("adam", "rmsprop")
        require(self.scaling in known, "inner.optimizer.scaling", self.scaling, "adam or rmsprop", "use adam")


class ScaledDescent(Optimizer):
    """The update above; its state has `step`, `exp_avg` and `exp_avg_sq` for each parameter."""

    def __init__(self, groups: list[dict[str, object]], settings: Savic) -> None:
        super().__init__(groups, {"lr": settings.lr, "weight_decay": settings.weight_decay})
        self.settings = settings

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One inner step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["weight_decay"])

    def _update(self, p: Tensor, grad: Tensor, lr: float, decay: float) -> None:
        state, chosen = self.state[p], self.settings
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if state["step"] % chosen.scale_every == 0:
            renewal = state["step"] // chosen.scale_every + 1
            b = chosen.beta2
            if chosen.scaling == "adam":
                b = (b - b**renewal) / (1 - b**renewal)
            state["exp_avg_sq"].mul_(b).addcmul_(grad, grad, value=1 - b)
        state["step"] += 1
        state["exp_avg"].mul_(chosen.beta1).add_(grad)
        p.mul_(1 - lr * decay)
        p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().clamp_(min=chosen.floor), value=-lr)
