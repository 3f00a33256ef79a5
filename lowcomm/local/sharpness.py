"""DFedSAM: the gradient is taken where the loss is largest nearby, so that islands' weights end where it is flat.

Shi et al., Improving the Model Consistency of Decentralized Federated Learning, arXiv 2302.04083 (with several steps of
mixing: DFedSAM-MGS, `Gossip(steps=4)`); Foret et al., arXiv 2010.01412, the step itself.

    e = rho g(x) / ||g(x)||;   the inner optimizer's gradient is g(x + e), of the same batch

g: gradient of the step's mean loss over all that is trained, ||.|| its L2 norm in fp32; rho: `rho`. The weights
themselves are put back bit for bit. Flat minima are where a mean of islands loses least.
Cost: two backward passes per inner step, one copy of the weights while a step is taken; no bytes.
Raises: ConfigError for a rho out of range. A loop of one's own takes both passes itself, with `ascend`: LocalSGD, which
sees no losses, refuses the objective there.
Deviates: before clipping; any inner optimizer.
Reduces to: plain local steps for rho = 0, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowcomm.local.objective import Objective
from lowcomm.types import Delta, require


@dataclass(frozen=True, kw_only=True)
class SharpnessAware(Objective):
    """The gradient at x + rho g / ||g||."""

    rho: float = 0.05
    """Length of the step up (in units of the weights), 0 or more; the papers use 0.01 to 0.1."""

    passes: ClassVar[int] = 2
    anchored: ClassVar[bool] = False

    def correct(self, grads: Delta, local: Delta, start: Delta, controls: Delta) -> None:
        return None

    def check(self) -> None:
        ok = math.isfinite(self.rho) and self.rho >= 0
        require(ok, "sync.objective.rho", self.rho, "a finite number, 0 or more", "0.05")


@torch.no_grad()
def ascend(params: Sequence[nn.Parameter], rho: float) -> list[Tensor]:
    """Move parameters by rho along their gradients, in place, and clear these; returns what they were, to be put back.

    A parameter without a gradient stays.
    """
    kept = [p.detach().clone() for p in params]
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in params if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    for p in params:
        if p.grad is not None and norm > 0:
            p.add_(p.grad.to(p.dtype), alpha=rho / norm)
        p.grad = None
    return kept
