"""HeLoCo's turn: stale Deltas are turned towards the outer momentum, tensor by tensor.

HeLoCo, arXiv 2606.00271. For a tensor D of a stale Delta and the outer momentum m of that tensor:

    c = cos(D, m),    conf = |D| / (|D| + kappa |m|)
    c >= c_ok:        D
    0 <= c < c_ok:    |D| times the unit vector of (1 - lam) D/|D| + lam m/|m|,    lam = min(k_d (1 - c) conf, 1)
    c < 0:            D - s c |D| m/|m|,    s = min(k_s (-c) conf, b_max): a share s of what opposes m is taken away

Shapes as they are, fp32; norms and products are summed in fp64. No bytes; a pass over Delta and momentum per stale
contribution. A Delta that is not stale, a tensor of zeros and one without momentum stay as they are.
Deviations: read from the paper's summary: the constants are ours. The outer step of the paper is `outer/heloco.py`.
Reduces to: `c_ok` 0 and `k_s` 0, or no staleness: the identity.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.arrival.base import Turn
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class TurnStale(Turn):
    """Turn stale Deltas towards the outer momentum."""

    c_ok: float = 0.5
    """Cosine, 0 to 1, from which on a tensor stays as it is."""
    kappa: float = 1.0
    """Weight of the momentum's norm in the confidence, 0 or more."""
    k_d: float = 0.5
    """How far a tensor that goes with the momentum is turned, 0 or more."""
    k_s: float = 1.0
    """How much is taken away of what opposes the momentum, 0 or more."""
    b_max: float = 1.0
    """Largest share that is taken away, 0 to 1."""

    def __call__(self, delta: Sequence[Tensor], momentum: Sequence[Tensor | None], staleness: int) -> list[Tensor]:
        if staleness <= 0:
            return list(delta)
        return [d if m is None else self.turned(d, m) for d, m in zip(delta, momentum, strict=True)]

    def turned(self, d: Tensor, m: Tensor) -> Tensor:
        """One tensor."""
        norm_d, norm_m = math.sqrt(_dot(d, d)), math.sqrt(_dot(m, m))
        if not (norm_d > 0 and norm_m > 0):
            return d
        c = max(-1.0, min(1.0, _dot(d, m) / (norm_d * norm_m)))
        confidence = norm_d / (norm_d + self.kappa * norm_m)
        if c >= self.c_ok:
            return d
        if c < 0:
            share = min(self.k_s * -c * confidence, self.b_max)
            return torch.sub(d, m, alpha=share * c * norm_d / norm_m)
        lam = min(self.k_d * (1 - c) * confidence, 1.0)
        if lam == 0:
            return d
        # the length of (1 - lam) D/|D| + lam m/|m| follows from c
        length = math.sqrt(max((1 - lam) ** 2 + lam**2 + 2 * lam * (1 - lam) * c, 1e-12))
        return d.mul((1 - lam) / length).add_(m, alpha=lam * norm_d / (norm_m * length))

    def check(self, name: str) -> None:
        require(0 <= self.c_ok <= 1, f"{name}.c_ok", self.c_ok, "0 to 1", "0.5 is usual")
        require(0 <= self.b_max <= 1, f"{name}.b_max", self.b_max, "0 to 1", "1.0 is usual")
        for field in ("kappa", "k_d", "k_s"):
            value = getattr(self, field)
            require(0 <= value < math.inf, f"{name}.{field}", value, "a finite number, 0 or more", "leave it out")


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.double().mul(b).sum())
