"""Expected loss against data-parallel on the same tokens, from published fits, and where they are valid.

Charles et al., Scaling Laws for DiLoCo, arXiv 2503.09799, at H = 30, loss relative to data-parallel for 1, 2, 4 and 8
islands, interpolated in log N and log M: 35M -0.1/+0.7/+2.0/+3.9 %, 550M -0.3/+0.2/+0.7/+1.7 %, 2.4B -0.4/-0.1/+0.3/
+1.1 %. Other H: no fit is published that holds for all sizes. DiLoCo, arXiv 2311.08105, has 2.9 % of perplexity from
H = 50 to 1000 with 8 islands at 150M (quoted from memory, not checked in the paper): 0.25 % of the loss per doubling,
taken above 30 for every size; nothing is credited below. Overlap, Streaming DiLoCo, arXiv 2501.18512: none up to 5
steps of delay, 0.2 % up to 10; a whole round, eager updates, arXiv 2502.12996: 0.5 %, and as much for delays between.
Codecs: `lowcomm.plan.codecs`. Outer learning rate: 0.4/0.6/0.6/0.8 for 1/2/4/8 islands, from the scaling laws.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from lowcomm.plan.runtime import Job, Settings

SIZES = (35e6, 550e6, 2.4e9)
ISLANDS = (1, 2, 4, 8)
PENALTIES = ((-0.001, 0.007, 0.020, 0.039), (-0.003, 0.002, 0.007, 0.017), (-0.004, -0.001, 0.003, 0.011))
FITTED_EVERY = 30
PER_DOUBLING = 0.0025
LONGEST_EVERY = 1000
OUTER_LR = (0.4, 0.6, 0.6, 0.8)
STREAMING_LR = 0.4
"""Streaming DiLoCo's, whose fragments come one after the other."""


FEWEST_WARM, MOST_WARM, WARM_MOMENTUM = 40, 60, 0.8
"""Rounds within which momentum is warmed up over half of the rounds, and what it then is."""


def loss_penalty(job: Job, settings: Settings) -> float:
    """Part by which the loss is expected to lie above data-parallel's; outside the fitted range its edge is taken."""
    rows = [_interpolate(ISLANDS, row, job.islands) for row in PENALTIES]
    base = _interpolate(SIZES, rows, job.parameters)
    longer = PER_DOUBLING * math.log2(max(settings.every, FITTED_EVERY) / FITTED_EVERY)
    return base + longer + overlap_penalty(settings) + settings.codec.penalty


def overlap_penalty(settings: Settings) -> float:
    """Of the delay alone."""
    if settings.delay <= 5:
        return 0.0
    return 0.002 if settings.delay <= 10 else 0.005


def outer_lr(job: Job, settings: Settings) -> float:
    """The outer learning rate, rounded to 0.05."""
    if settings.codec.kind == "gathered":
        return 1.0  # SparseLoCo averages
    lr = STREAMING_LR if settings.fragments > 1 else _interpolate(ISLANDS, OUTER_LR, job.islands)
    return round(lr / 0.05) * 0.05


def momentum_for(rounds: int) -> float:
    """Outer Nesterov momentum by the number of rounds: few rounds overshoot at 0.9 (benchmarks/results/tuning.json)."""
    return 0.9 if rounds >= 240 else 0.8 if rounds >= 60 else 0.6


def warms_up(rounds: int) -> bool:
    """Whether a run of so many rounds should take its outer momentum later (`outer.Pier`): where that was measured to
    pay (benchmarks/results/optimizers.json)."""
    return FEWEST_WARM <= rounds < MOST_WARM


def outer_momentum(job: Job, settings: Settings) -> float:
    """The outer momentum of a run of these settings; 0 where plain averaging is planned."""
    rounds = job.steps // settings.every
    if settings.codec.kind == "gathered":
        return 0.0
    return WARM_MOMENTUM if warms_up(rounds) else momentum_for(rounds)


def outside(job: Job, settings: Settings) -> str | None:
    """One line that says what lies outside the fits, or None."""
    found = []
    if not SIZES[0] <= job.parameters <= SIZES[-1]:
        found.append(f"for {job.parameters / 1e6:,.4g}M parameters the nearest published size is taken (35M to 2,400M)")
    if job.islands > ISLANDS[-1]:
        found.append(f"for {job.islands} islands that of 8 is taken")
    if settings.every != FITTED_EVERY:
        more = "" if settings.every <= LONGEST_EVERY else f", and nothing beyond {LONGEST_EVERY} was ever published"
        longer = (
            "0.25 % are added per doubling of H" if settings.every > FITTED_EVERY else "a shorter H is not credited"
        )
        found.append(f"the fits are for H = {FITTED_EVERY}: {longer}{more}")
    if settings.codec.kind == "gathered":
        found.append("top-k was measured here with 0.12M parameters over 160 rounds, where it is far behind")
    return f"the expected loss is an extrapolation: {'; '.join(found)}" if found else None


def _interpolate(xs: tuple[float, ...], ys: tuple[float, ...] | list[float], x: float) -> float:
    """Piecewise linear in log x, constant outside."""
    x = min(max(x, xs[0]), xs[-1])
    i = min(bisect_right(xs, x), len(xs) - 1)
    share = math.log(x / xs[i - 1]) / math.log(xs[i] / xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])
