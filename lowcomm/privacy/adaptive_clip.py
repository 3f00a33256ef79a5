"""Client-level privacy whose clip follows a quantile of the norms, privately.

Andrew, Thakkar, McMahan, Ramaswamy, arXiv 1905.03871.

    z_D = (z^-2 - (2 s_b)^-2)^(-1/2),   Delta_k <- clip(Delta_k, C) + N(0, (z_D C)^2 / m)
    b~ = 1/2 + 1 / n sum_k (1[||Delta_k|| <= C] - 1/2 + N(0, s_b^2 / m)),   C <- C exp(-eta (b~ - gamma))

C: `State["clip"]`, at first `clip`; gamma: `quantile`; eta: `rate`; s_b: `bit_noise`; n, m: as in `client_gaussian`.
Delta and bit together cost what one Gaussian mechanism of multiplier z costs, so the accountant sees z.
Cost: 8 B per island and round, sent to all, beside the Delta. Trust and guarantee: as in `client_gaussian`.
Raises: as `client_gaussian`; ConfigError for bit_noise not above z / 2.
Deviates: noise on the islands, no sampling credited, as there. The bit's sensitivity is 1/2, since 1/2 is taken off.
Reduces to: `ClientGaussian` for rate = 0, with the noise multiplier z_D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.privacy.mechanism import Draw, Mechanism, State
from lowcomm.privacy.noise import add_noise, clip_to, generator_of
from lowcomm.types import Delta, require


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip(Mechanism):
    """As ClientGaussian, with a clip that finds the given quantile of the norms by itself."""

    clip: float = 0.1
    """C of the first round: too small is safe, it grows by exp(rate * quantile) per round at most."""
    quantile: float = 0.5
    """gamma: share of the islands whose pseudo-gradients are to be left unclipped."""
    rate: float = 0.2
    """eta: learning rate of the clip's logarithm."""
    bit_noise: float = 1.0
    """s_b: standard deviation of the noise on the count of unclipped islands, above noise_multiplier / 2."""

    level: ClassVar[Literal["client", "example"]] = "client"
    learns: ClassVar[bool] = True

    @property
    def sensitivity(self) -> float:
        return self.clip

    @property
    def delta_multiplier(self) -> float:
        """z_D: the multiplier of the Delta's own noise."""
        z = self.noise_multiplier
        return z / math.sqrt(1 - (z / (2 * self.bit_noise)) ** 2) if z > 0 else 0.0

    def init(self) -> State:
        return {"clip": self.clip}

    def clip_and_noise(self, delta: Delta, draw: Draw, state: State) -> float | None:
        tensors, clip, shares = list(delta.values()), state["clip"], math.sqrt(draw.shares)
        inside = clip_to(tensors, clip)
        add_noise(tensors, self.delta_multiplier * clip / shares, draw.seed)
        noise = 0.0
        if self.noise_multiplier > 0:
            noise = float(generator_of(draw.seed ^ 1).standard_normal()) * self.bit_noise / shares
        return float(inside) - 0.5 + noise

    def learn(self, state: State, told: Mapping[int, float]) -> State:
        below = 0.5 + sum(told[k] for k in sorted(told)) / len(told)
        return {"clip": state["clip"] * math.exp(-self.rate * (below - self.quantile))}

    def check(self) -> None:
        super().check()
        require(0 < self.clip <= 1e30, "sync.privacy.clip", self.clip, "above 0, at most 1e30", "0.1 is a small start")
        require(0 < self.quantile < 1, "sync.privacy.quantile", self.quantile, "0 < quantile < 1", "0.5 is the median")
        require(0 <= self.rate <= 10, "sync.privacy.rate", self.rate, "0 to 10", "0.2 is usual")
        least = self.noise_multiplier / 2
        ok = math.isfinite(self.bit_noise) and self.bit_noise > least
        fix = "a twentieth of the islands, and above that"
        require(ok, "sync.privacy.bit_noise", self.bit_noise, f"above {least:g}, half of noise_multiplier", fix)
