"""Which settings: of a small grid those with the least expected loss among the ones that reach the goal.

Goal: a utilisation, or a wall-clock for the whole run. Equal losses: the simpler one (no overlap before overlap, fp32
before packed, fewer fragments, a shorter delay, fewer streams), then the higher utilisation. If nothing reaches the
goal, the one that comes nearest, and `reached` is False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lowcomm.plan.codecs import USUAL, Coded
from lowcomm.plan.penalty import loss_penalty
from lowcomm.plan.runtime import Job, Link, Prediction, Settings, predict

PERIODS = (10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000)
FRAGMENTS = (1, 2, 4, 8, 16)
DELAYS = (1, 2, 3, 5, 10)
STREAMS = (1, 2, 4, 8)
FULL = 0.98
"""More streams are of no use once these carry this share of what the link can."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """Settings with what is expected of them."""

    prediction: Prediction
    penalty: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best option, whether it reaches the goal, and the best of each kind."""

    best: Option
    reached: bool
    alternatives: list[Option]
    settings: int
    """All that were looked at."""
    reaching: int
    """Those of them that reach the goal."""


def choose(
    job: Job,
    link: Link,
    *,
    utilisation: float | None = None,
    budget_s: float | None = None,
    codecs: Sequence[Coded] = USUAL,
    layers: int | None = None,
    every: int | None = None,
    adjust: Callable[[Prediction], Prediction] | None = None,
) -> Choice:
    """utilisation, budget_s: goals (share of time; whole run); layers: most fragments (None: 16); every: fixed H.

    adjust: what was learnt of predictions (`learned.py`); the settings are those of the same grid.
    """

    def reaches(p: Prediction) -> bool:
        return p.utilisation >= (utilisation or 0.0) and (budget_s is None or p.wall_s <= budget_s)

    best_of: dict[str, Option] = {}
    seen = reaching = 0
    for settings in grid(job, link, codecs, layers, every):
        prediction = predict(job, link, settings)
        prediction = prediction if adjust is None else adjust(prediction)
        seen, reaching = seen + 1, reaching + reaches(prediction)
        option = Option(prediction=prediction, penalty=loss_penalty(job, settings), label=label_of(settings))
        held = best_of.get(option.label)
        if held is None or _rank(option, reaches) < _rank(held, reaches):
            best_of[option.label] = option
    alternatives = sorted(best_of.values(), key=lambda o: _rank(o, reaches))
    best = alternatives[0]
    return Choice(
        best=best, reached=reaches(best.prediction), alternatives=alternatives, settings=seen, reaching=reaching
    )


def _rank(option: Option, reaches: Callable[[Prediction], bool]) -> tuple[float, ...]:
    p, s = option.prediction, option.prediction.settings
    if not reaches(p):
        return (1.0, -p.utilisation)
    simple = (s.delay > 0, -s.codec.bits, s.fragments, s.delay, s.streams)
    return (0.0, round(option.penalty, 4), *map(float, simple), -p.utilisation)


def label_of(settings: Settings) -> str:
    """The kind of method, without its numbers."""
    if settings.delay >= settings.every:
        schedule = "one-step delay"
    elif settings.delay:
        schedule = "streaming + overlap" if settings.fragments > 1 else "overlap"
    else:
        schedule = "streaming" if settings.fragments > 1 else "DiLoCo"
    return f"{schedule} {settings.codec.name}"


def grid(job: Job, link: Link, codecs: Sequence[Coded], layers: int | None, every: int | None) -> Iterator[Settings]:
    """All settings that a recipe may hold."""
    periods = [every] if every is not None else [h for h in PERIODS if h <= job.steps] or [job.steps]
    streams = enough_streams(job, link)
    for codec in codecs:
        for fragments in (f for f in FRAGMENTS if f <= (layers or FRAGMENTS[-1])):
            for period in periods:
                if fragments > period:
                    continue
                gap = period // fragments
                if fragments == 1:  # fragments without overlap only add round trips
                    yield Settings(every=period, codec=codec, streams=streams)
                for delay in (d for d in DELAYS if d < gap):
                    yield Settings(every=period, codec=codec, fragments=fragments, delay=delay, streams=streams)
                if fragments == 1 and 2 * period <= job.steps:
                    yield Settings(every=period, codec=codec, delay=period, streams=streams)


def enough_streams(job: Job, link: Link) -> int:
    """The fewest connections that fill the link."""
    peers = job.islands - 1
    full = link.bytes_per_s(STREAMS[-1] * peers)
    for streams in STREAMS:
        if link.bytes_per_s(streams * peers) >= FULL * full:
            return streams
    return STREAMS[-1]
