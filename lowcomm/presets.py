"""Short functions that return a LocalSGD with one paper's settings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from lowcomm.outer import SGD, Nesterov
from lowcomm.sync import LocalSGD
from lowcomm.transport import Transport

Models = nn.Module | Sequence[nn.Module]
Optimizers = Optimizer | Sequence[Optimizer]


def DiLoCo(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 500,
    lr: float = 0.7,
    momentum: float = 0.9,
    transport: Transport | None = None,
) -> LocalSGD:
    """DiLoCo (arXiv 2311.08105): H inner AdamW steps, outer Nesterov; inner moments stay on their island."""
    return LocalSGD(model, inner, every=every, outer=Nesterov(lr=lr, momentum=momentum), transport=transport)


def FedAvg(  # noqa: N802 - the paper's name
    model: Models, inner: Optimizers, *, every: int, transport: Transport | None = None
) -> LocalSGD:
    """FedAvg (arXiv 1602.05629): the token-weighted mean of the islands' weights every `every` steps."""
    return LocalSGD(model, inner, every=every, outer=SGD(lr=1.0), transport=transport)
