"""Learning rates by inner step: a linear warm-up, then one of the usual shapes.

    w = warm-up steps, S = all steps, m = min_lr_fraction, p = (step - w) / (S - w)
    cosine        m + (1 - m) (1 + cos(pi p)) / 2          Loshchilov and Hutter, SGDR, arXiv 1608.03983
    linear        1 - (1 - m) p
    constant      1
    wsd           1, and over the last d = decay_fraction of all steps 1 - (1 - m) (step - (S - d S)) / (d S): warm-up,
                  stable, decay (trapezoid). Hu et al., MiniCPM, arXiv 2404.06395
    inverse_sqrt  max(m, sqrt(w / step)), with w at least 1; Vaswani et al., arXiv 1706.03762
The step is global progress, so that an island that joins late has the rate of the others. fp64 in, fp64 out; no bytes.
Reduces to: constant, for m = 1; wsd with d = 1 and no warm-up is linear.
"""

from __future__ import annotations

import math
from typing import Literal

LrSchedule = Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"]
LR_SCHEDULES: tuple[LrSchedule, ...] = ("cosine", "linear", "constant", "wsd", "inverse_sqrt")


def lr_factor(
    step: int,
    steps: int,
    warmup_fraction: float,
    min_lr_fraction: float,
    schedule: LrSchedule = "cosine",
    decay_fraction: float = 0.2,
) -> float:
    """Fraction of the peak learning rate for inner step `step` (from 0) of `steps`, 0 to 1.

    `step` is global progress: the same for an island that joined late.
    """
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    falling = 1 - min_lr_fraction
    if schedule == "cosine":
        return min_lr_fraction + falling * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return min_lr_fraction + falling * (1 - progress)
    if schedule == "wsd":
        decay = max(1, round(steps * decay_fraction))
        return 1 - falling * min(1.0, max(0.0, (step - (steps - decay)) / decay))
    if schedule == "inverse_sqrt":
        first = max(1, warmup)
        return max(min_lr_fraction, math.sqrt(first / max(step + 1, first)))
    return 1.0
