"""BAFFLE: k forward differences along directions that all islands share, averaged over the islands.

Feng et al., arXiv 2301.12195.

    dL_kj = L_k(w + sigma z_j) - L_k(w),   w <- w - lr / (n K) sum_j (sum_k dL_kj / sigma) z_j

z_j ~ N(0, I), j = 1 .. K (`probes`): drawn from a seed of (run, step, probe), equal on all islands, so that what they
send may be summed on the way; sigma: `eps`; L_k: mean loss of island k's batch, nats per token; n: the islands that
took part. Any shape and float dtype of weights, sums in fp32.
Cost: 4 K bytes to each other island per step, as many from each. K + 1 forward passes, and K passes over the weights to
regenerate directions. No gradient, no graph, no optimizer state.
Raises: ConfigError for a setting out of range.
Deviates: islands weigh alike, not by the size of their data; every island makes the update itself, there is no server;
none of the paper's changes to the model (EMA of weights, Hardswish, group normalisation).
Reduces to: for K to infinity and sigma to 0, the gradient of the islands' mean loss (synchronous SGD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.local.estimate import Estimate, Loss, fp32_row


@dataclass(frozen=True, kw_only=True)
class Baffle(Estimate):
    """Forward differences along the same directions on all islands, fp32."""

    probes: int = 20
    """Directions per step, the paper's K: 20 to 500 there."""

    own_directions: ClassVar[bool] = False

    @property
    def row_bytes(self) -> int:
        return 4 * self.probes

    def measure(self, loss: Loss, seeds: Sequence[int]) -> tuple[list[float], float]:
        here = loss(0, 0.0)
        return [(loss(seed, self.eps) - here) / self.eps for seed in seeds], here

    def write(self, scalars: Sequence[float]) -> Tensor:
        return fp32_row(scalars)

    def read(self, rows: Tensor) -> Tensor:
        return rows.contiguous().view(torch.float32).double()
