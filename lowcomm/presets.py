"""Short functions that return a LocalSGD with one paper's settings; all take LocalSGD's arguments as well (`others`).

An argument of LocalSGD stands in the place of the paper's part: `DiLoCo(..., codec=Int4())` is DiLoCo in four bits.
Raises ConfigError for a part and a setting of the part that it replaces (`outer` and `momentum`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

from torch import nn
from torch.optim import Optimizer

from lowcomm.codec import Codec, ErrorFeedback, Int4, PowerSGD, TopK
from lowcomm.outer import SGD, Nesterov, Outer, Pier
from lowcomm.plan.penalty import WARM_MOMENTUM, momentum_for, warms_up
from lowcomm.schedule import OneStepDelay, Schedule, Streaming
from lowcomm.schedule.layers import count_layers
from lowcomm.sync import LocalSGD
from lowcomm.sync.arguments import SyncArguments
from lowcomm.types import ConfigError

Models = nn.Module | Sequence[nn.Module]
Optimizers = Optimizer | Sequence[Optimizer]


def DiLoCo(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 500,
    lr: float | None = None,
    momentum: float | None = None,
    steps: int | None = None,
    outer: Outer | None = None,
    codec: Codec | None = None,
    schedule: Schedule | None = None,
    **others: Unpack[SyncArguments],
) -> LocalSGD:
    """DiLoCo (arXiv 2311.08105): H inner AdamW steps, outer Nesterov; inner moments stay on their island.

    lr: 0.7. momentum: by the rounds in `steps`, the inner steps of the whole run; 0.9 where these are not known. From
    40 to 59 rounds it rises from plain averaging to 0.8 in half of them (`outer.Pier`).
    """
    chosen = _nesterov(outer, lr, momentum, 0.7, every, steps)
    rounds = 0 if steps is None else steps // max(1, every)
    if outer is None and momentum is None and warms_up(rounds):
        chosen = Pier(lr=0.7 if lr is None else lr, momentum=WARM_MOMENTUM, warmup_rounds=rounds // 2)
    return LocalSGD(
        model,
        inner,
        every=every,
        outer=chosen,
        codec=codec,
        schedule=schedule,
        **others,
    )


def FedAvg(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int,
    outer: Outer | None = None,
    codec: Codec | None = None,
    schedule: Schedule | None = None,
    **others: Unpack[SyncArguments],
) -> LocalSGD:
    """FedAvg (arXiv 1602.05629): the token-weighted mean of the islands' weights every `every` steps."""
    return LocalSGD(model, inner, every=every, outer=outer or SGD(lr=1.0), codec=codec, schedule=schedule, **others)


def SparseLoCo(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 30,
    lr: float | None = None,
    beta: float | None = None,
    k: int | None = None,
    bits: Literal[2, 8, 16] | None = None,
    outer: Outer | None = None,
    codec: Codec | None = None,
    schedule: Schedule | None = None,
    **others: Unpack[SyncArguments],
) -> LocalSGD:
    """SparseLoCo (arXiv 2508.15706): H inner steps, the k largest of each 4096 in few bits, error feedback, averaging.

    lr 1, beta 0.95, k 64 and 2 bits are those of Covenant-72B (arXiv 2603.08163): 0.16 bits per parameter and round.
    """
    if outer is not None:
        _refuse_both("outer", outer, {"lr": lr})
    if codec is not None:
        _refuse_both("codec", codec, {"beta": beta, "k": k, "bits": bits})
    sparse = TopK(chunk=4096, k=64 if k is None else k, bits=bits or 2)
    feedback = ErrorFeedback(codec=sparse, beta=0.95 if beta is None else beta)
    return LocalSGD(
        model,
        inner,
        every=every,
        outer=outer or SGD(lr=1.0 if lr is None else lr),
        codec=codec or feedback,
        schedule=schedule,
        **others,
    )


def StreamingDiLoCo(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 100,
    fragments: int | None = None,
    delay: int | None = None,
    alpha: float | None = 0.5,
    lr: float | None = None,
    momentum: float | None = None,
    steps: int | None = None,
    outer: Outer | None = None,
    codec: Codec | None = None,
    schedule: Schedule | None = None,
    **others: Unpack[SyncArguments],
) -> LocalSGD:
    """Streaming DiLoCo (arXiv 2501.18512): fragments in turn, `delay` steps in flight, mixed in halves, 4 bits.

    fragments: 4, or as many as layers and `every` allow; delay: 5, or what fits between two of them. lr: 0.4. momentum
    and steps as of DiLoCo.
    """
    return LocalSGD(
        model,
        inner,
        every=every,
        outer=_nesterov(outer, lr, momentum, 0.4, every, steps),
        codec=codec or ErrorFeedback(codec=Int4()),
        schedule=_streaming(schedule, model, every, fragments, delay, alpha),
        **others,
    )


def DiLoCoX(  # noqa: N802 - the paper's name
    model: Models,
    inner: Optimizers,
    *,
    every: int = 125,
    rank: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    steps: int | None = None,
    outer: Outer | None = None,
    codec: Codec | None = None,
    schedule: Schedule | None = None,
    **others: Unpack[SyncArguments],
) -> LocalSGD:
    """After DiLoCoX (arXiv 2506.21263): an update has the next round to arrive, low-rank in 4 bits, error feedback.

    rank: 64. lr: 0.7. momentum and steps as of DiLoCo.
    """
    if codec is not None:
        _refuse_both("codec", codec, {"rank": rank})
    low_rank = ErrorFeedback(codec=PowerSGD(rank=64 if rank is None else rank, bits=4, energy=0.95))
    return LocalSGD(
        model,
        inner,
        every=every,
        outer=_nesterov(outer, lr, momentum, 0.7, every, steps),
        codec=codec or low_rank,
        schedule=schedule or OneStepDelay(),
        **others,
    )


def _nesterov(
    outer: Outer | None, lr: float | None, momentum: float | None, usual_lr: float, every: int, steps: int | None
) -> Outer:
    """The outer optimizer given, or Nesterov, with a momentum that suits the number of rounds where that is known."""
    if outer is not None:
        _refuse_both("outer", outer, {"lr": lr, "momentum": momentum})
        return outer
    if momentum is None and steps is None:
        logging.getLogger("lowcomm").warning(
            "outer momentum 0.9 is for 240 rounds or more and diverges over a few. Pass steps=, the inner steps of the "
            "whole run, and it is chosen by the number of rounds; or momentum="
        )
    rounds = None if steps is None else steps // max(1, every)
    chosen = momentum if momentum is not None else 0.9 if rounds is None else momentum_for(rounds)
    return Nesterov(lr=usual_lr if lr is None else lr, momentum=chosen)


def _streaming(
    schedule: Schedule | None, model: Models, every: int, fragments: int | None, delay: int | None, alpha: float | None
) -> Schedule:
    """The schedule given, or as many of the paper's 4 fragments and 5 steps of delay as layers and `every` allow."""
    if schedule is not None:
        _refuse_both("schedule", schedule, {"fragments": fragments, "delay": delay})
        return schedule
    first = model if isinstance(model, nn.Module) else model[0]
    layers = count_layers(name for name, p in first.named_parameters() if p.requires_grad)
    most = every // ((delay or 0) + 1)
    parts = max(1, min(4, layers, most)) if fragments is None else fragments
    room = max(0, every // max(1, parts) - 1)
    return Streaming(fragments=parts, delay=min(5, room) if delay is None else delay, alpha=alpha)


def _refuse_both(name: str, part: object, settings: Mapping[str, object]) -> None:
    given = [setting for setting, value in settings.items() if value is not None]
    if given:
        raise ConfigError(
            f"{name} = {part!r} is not allowed with {given[0]}, a setting of the part that it replaces. "
            "Fix: give one of the two"
        )
