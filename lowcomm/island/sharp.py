"""An island that takes each gradient twice: where it is, and from there a step uphill.

The equation and the paper are in `lowcomm.local.sharpness`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lowcomm.island.plain import Batch, PlainIsland


class SharpIsland(PlainIsland):
    """PlainIsland with another backward. `ascend` is set before the first step."""

    ascend: Callable[[Sequence[nn.Parameter]], list[Tensor]]
    """Moves parameters uphill, clears their gradients and returns what they were."""

    def backward(self, batches: Sequence[Batch]) -> float:
        """The gradient uphill, with the randomness of the first pass; returns the loss where the island is.

        Gradients that are there already are lost: a step's micro-batches come together.
        """
        before = self.cpu_rng, self.cuda_rng
        loss = super().backward(batches)
        if not math.isfinite(loss):
            return loss
        kept = self.ascend(self.params)
        self.cpu_rng, self.cuda_rng = before
        super().backward(batches)
        with torch.no_grad():
            for p, old in zip(self.params, kept, strict=True):
                p.copy_(old)
        return loss
