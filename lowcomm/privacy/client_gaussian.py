"""Client-level privacy with a fixed clip: nobody can tell from the model whether an island took part.

McMahan, Ramage, Talwar, Zhang, DP-FedAvg, arXiv 1710.06963.

    Delta_k <- Delta_k min(1, S / ||Delta_k||) + N(0, (z S)^2 / m),   Delta = 1 / n sum_k Delta_k

S: `clip`; z: `noise_multiplier`; n: the islands that were counted; m <= n: `Draw.shares`, the fewest with which a round
is committed (quorum times islands), so that the sum has at least N(0, (z S)^2) whoever drops out.
Shapes and dtypes: those of the Delta, fp32; the norm is over all its tensors. Cost: no bytes of its own.
Guarantee: each round is one Gaussian mechanism of multiplier z for whoever sees only sums (the global model); exchanges
that failed count as well, as their payloads may have been seen. Neighbours: an island's Delta replaced by zero.
Trust: the noise is distributed. Each island adds its share itself, and is trusted to do so; whoever reads one island's
payload (other islands, the link) sees it under that share only, multiplier z / sqrt(m): `epsilon_payload`.
Raises: ConfigError out of range, for weights that are not uniform, and for rules that look at single contributions.
Deviates: no sampling of islands is credited, all take part; noise on the islands instead of the server's.
Reduces to: the run without privacy, bit for bit, for noise_multiplier = 0 and a clip above every norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.privacy.mechanism import Draw, Mechanism, State
from lowcomm.privacy.noise import add_noise, clip_to
from lowcomm.types import Delta, require


@dataclass(frozen=True, kw_only=True)
class ClientGaussian(Mechanism):
    """Each island's pseudo-gradient clipped to `clip`, with its share of Gaussian noise."""

    clip: float = 1.0
    """S: L2 norm to which a pseudo-gradient is cut; not to be chosen by looking at private ones."""

    level: ClassVar[Literal["client", "example"]] = "client"

    @property
    def sensitivity(self) -> float:
        return self.clip

    def init(self) -> State:
        return {"clip": self.clip}

    def clip_and_noise(self, delta: Delta, draw: Draw, state: State) -> float | None:
        tensors = list(delta.values())
        clip_to(tensors, self.clip)
        add_noise(tensors, self.noise_multiplier * self.clip / math.sqrt(draw.shares), draw.seed)
        return None

    def check(self) -> None:
        super().check()
        ok = 0 < self.clip <= 1e30
        require(ok, "sync.privacy.clip", self.clip, "above 0, at most 1e30", "the norm of a usual pseudo-gradient")
