"""Short functions that return a LocalSGD with one paper's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from lowcomm.codec import ErrorFeedback, Int4, PowerSGD, TopK
from lowcomm.outer import SGD, Nesterov
from lowcomm.schedule import OneStepDelay, Streaming
from lowcomm.state.spec import BufferRule
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
    buffers: Mapping[str, BufferRule] | None = None,
) -> LocalSGD:
    """DiLoCo (arXiv 2311.08105): H inner AdamW steps, outer Nesterov; inner moments stay on their island."""
    return LocalSGD(
        model, inner, every=every, outer=Nesterov(lr=lr, momentum=momentum), transport=transport, buffers=buffers
    )


def FedAvg(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int,
    transport: Transport | None = None,
    buffers: Mapping[str, BufferRule] | None = None,
) -> LocalSGD:
    """FedAvg (arXiv 1602.05629): the token-weighted mean of the islands' weights every `every` steps."""
    return LocalSGD(model, inner, every=every, outer=SGD(lr=1.0), transport=transport, buffers=buffers)


def SparseLoCo(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 30,
    lr: float = 1.0,
    beta: float = 0.95,
    k: int = 64,
    bits: Literal[2, 8, 16] = 2,
    transport: Transport | None = None,
    buffers: Mapping[str, BufferRule] | None = None,
) -> LocalSGD:
    """SparseLoCo (arXiv 2508.15706): H inner steps, the k largest of each 4096 in few bits, error feedback, averaging.

    The defaults are those of Covenant-72B (arXiv 2603.08163): 0.16 bits per parameter and round.
    """
    codec = ErrorFeedback(codec=TopK(chunk=4096, k=k, bits=bits), beta=beta)
    return LocalSGD(model, inner, every=every, outer=SGD(lr=lr), codec=codec, transport=transport, buffers=buffers)


def StreamingDiLoCo(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 100,
    fragments: int = 4,
    delay: int = 5,
    alpha: float | None = 0.5,
    lr: float = 0.4,
    momentum: float = 0.9,
    transport: Transport | None = None,
    buffers: Mapping[str, BufferRule] | None = None,
) -> LocalSGD:
    """Streaming DiLoCo (arXiv 2501.18512): fragments in turn, `delay` steps on their way, mixed in halves, 4 bits."""
    return LocalSGD(
        model,
        inner,
        every=every,
        outer=Nesterov(lr=lr, momentum=momentum),
        codec=ErrorFeedback(codec=Int4()),
        schedule=Streaming(fragments=fragments, delay=delay, alpha=alpha),
        transport=transport,
        buffers=buffers,
    )


def DiLoCoX(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 125,
    rank: int = 64,
    lr: float = 0.7,
    momentum: float = 0.9,
    transport: Transport | None = None,
    buffers: Mapping[str, BufferRule] | None = None,
) -> LocalSGD:
    """After DiLoCoX (arXiv 2506.21263): an update has the next round to arrive, low-rank in 4 bits, error feedback."""
    return LocalSGD(
        model,
        inner,
        every=every,
        outer=Nesterov(lr=lr, momentum=momentum),
        codec=ErrorFeedback(codec=PowerSGD(rank=rank, bits=4, energy=0.95)),
        schedule=OneStepDelay(),
        transport=transport,
        buffers=buffers,
    )
