"""FedProx: a proximal term keeps a client near the weights that its round began with.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, arXiv 1812.06127.

    min_w h_k(w) = F_k(w) + mu / 2 ||w - w_t||^2,    g <- g + mu (w - w_t)

w_t: the global weights of round t; F_k: the client's loss; mu: `mu`. Any shape and float dtype, w_t in fp32. Over
what is trained: full weights or LoRA factors. A parameter without a gradient in a step has no term
either (resting factors).
No bytes, no state, no copy: w_t is the global weights that a sync keeps anyway.
Raises: ConfigError for a mu out of range.
Deviates: the term is added after gradient clipping; with an adaptive inner optimizer it is scaled like a gradient.
Reduces to: FedAvg for mu = 0, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowcomm.local.objective import Objective
from lowcomm.types import Delta, require


@dataclass(frozen=True, kw_only=True)
class FedProx(Objective):
    """mu (w - w_t) on the gradient of every inner step."""

    mu: float = 0.01
    """Strength of the proximal term, 0 or more; the paper tries 0.001 to 1."""

    def correct(self, grads: Delta, local: Delta, start: Delta, controls: Delta) -> None:
        if not self.mu:
            return
        for name, grad in grads.items():
            w = local[name].detach()
            grad.add_(w - start[name].to(w.device, w.dtype), alpha=self.mu)

    def check(self) -> None:
        ok = math.isfinite(self.mu) and self.mu >= 0
        require(ok, "sync.objective.mu", self.mu, "a finite number, 0 or more", "0.01")
