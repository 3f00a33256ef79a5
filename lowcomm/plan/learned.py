"""A correction of predicted utilisation, learnt from earlier runs, with how far it was off on runs left out.

After CubicML, arXiv 2409.04585, whose surrogate learns the speed of training jobs; here it learns what is left of the
closed form (`runtime.py`):

    r = logit(measured) - logit(predicted),   corrected = sigmoid(logit(predicted) + r_hat(features))

r_hat is the candidate that was off the least, by the median, on runs that it was not fitted to (each run left out in
turn): nothing, the mean of r, or gradient boosting (scikit-learn) on the features. So it never does worse on the known
runs than the closed form by that measure. Interval: the 80 % range of errors on the runs left out, in logits. Where
features lie outside of those of the runs, the closed form's own answer stays.
Raises ConfigError for too few runs, or without scikit-learn.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lowcomm.plan.runtime import Job, Link, Prediction, Settings, predict
from lowcomm.types import ConfigError, require

FEWEST = 6
"""Runs that a correction is learnt from."""
EDGE = 1e-4
"""Utilisations are kept that far from 0 and 1, where logits would be infinite."""
RANGE = (0.1, 0.9)
"""Quantiles of the interval."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One run that was made."""

    job: Job
    link: Link
    settings: Settings
    utilisation: float
    """Measured, above 0 and at most 1."""

    @property
    def residual(self) -> float:
        """In logits."""
        return logit(self.utilisation) - logit(predict(self.job, self.link, self.settings).utilisation)


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A prediction after the runs: utilisation, and the range in which it is expected to lie."""

    utilisation: float
    low: float
    high: float


def logit(share: float) -> float:
    """log(p / (1 - p)), for p away from the edges."""
    p = min(1 - EDGE, max(EDGE, share))
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    """The inverse of `logit`."""
    return 1 / (1 + math.exp(-x))


def features(job: Job, link: Link, settings: Settings) -> list[float]:
    """Numbers that errors of the closed form may follow."""
    p = predict(job, link, settings)
    hidden = settings.delay * job.step_s / max(p.exchange_s, 1e-9)
    return [
        logit(p.utilisation),
        math.log(settings.every * job.step_s),
        math.log(p.exchange_s),
        math.log(link.rate_bytes_per_s),
        link.rtt_s,
        float(settings.codec.bits),
        float(settings.fragments),
        min(2.0, hidden),
    ]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A correction; `kind` says which candidate it is."""

    kind: str
    runs: int
    error_before: float
    """Median relative error of the closed form's utilisation on the runs."""
    error_after: float
    """The same, corrected, each run by what was learnt from the others."""
    spread: tuple[float, float]
    """Quantiles of what is left in logits, `RANGE`."""
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    """Of each feature among the runs."""
    correct: Callable[[list[float]], float]

    def of(self, job: Job, link: Link, settings: Settings) -> Corrected:
        """Corrected utilisation of settings."""
        found, predicted = features(job, link, settings), predict(job, link, settings).utilisation
        slack = [0.1 * (b - a) + 1e-9 for a, b in zip(self.lowest, self.highest, strict=True)]
        inside = all(a - s <= x <= b + s for x, a, b, s in zip(found, self.lowest, self.highest, slack, strict=True))
        centre = logit(predicted) + (self.correct(found) if inside else 0.0)
        wide = 1.0 if inside else 2.0
        low, high = (sigmoid(centre + wide * s) for s in self.spread)
        middle = sigmoid(centre)
        return Corrected(utilisation=middle, low=min(low, middle), high=max(high, middle))

    def adjust(self, job: Job, link: Link) -> Callable[[Prediction], Prediction]:
        """A function that puts the corrected utilisation, and what follows from it, into a prediction."""

        def adjusted(p: Prediction) -> Prediction:
            used = self.of(job, link, p.settings).utilisation
            compute_s = p.settings.every * job.step_s
            round_s = compute_s / used
            return dataclasses.replace(
                p,
                utilisation=used,
                round_s=round_s,
                blocked_s=round_s - compute_s,
                bytes_per_day=p.sent_bytes * 86400 / round_s,
                wall_s=job.steps * round_s / p.settings.every,
            )

        return adjusted


def learn(observations: Sequence[Observation]) -> Learned:
    """The best candidate by leaving each run out in turn. Raises ConfigError."""
    count = len(observations)
    require(count >= FEWEST, "--runs", f"{count} usable runs", f"{FEWEST} or more over this link", "leave --runs out")
    rows = [features(o.job, o.link, o.settings) for o in observations]
    residuals = [o.residual for o in observations]
    candidates: dict[str, Callable[[list[list[float]], list[float]], Callable[[list[float]], float]]] = {
        "nothing": lambda _rows, _residuals: lambda _: 0.0,
        "the mean": lambda _rows, r: lambda _, m=statistics.mean(r): m,
        "boosting": _boosted,
    }
    left: dict[str, list[float]] = {kind: [] for kind in candidates}
    for i, residual in enumerate(residuals):
        others, known = rows[:i] + rows[i + 1 :], residuals[:i] + residuals[i + 1 :]
        for kind, fit in candidates.items():
            left[kind].append(residual - fit(others, known)(rows[i]))
    errors = {kind: _relative(observations, found) for kind, found in left.items()}
    best = min(candidates, key=lambda kind: errors[kind])
    return Learned(
        kind=best,
        runs=count,
        error_before=errors["nothing"],
        error_after=errors[best],
        spread=_range(sorted(left[best])),
        lowest=tuple(map(min, zip(*rows, strict=True))),
        highest=tuple(map(max, zip(*rows, strict=True))),
        correct=candidates[best](rows, residuals),
    )


def _relative(observations: Sequence[Observation], left: Sequence[float]) -> float:
    """Median of |corrected / measured - 1|; left: measured minus corrected, in logits."""
    errors = [
        abs(sigmoid(logit(o.utilisation) - x) / o.utilisation - 1) for o, x in zip(observations, left, strict=True)
    ]
    return statistics.median(errors)


def _boosted(rows: list[list[float]], residuals: list[float]) -> Callable[[list[float]], float]:
    """Few shallow trees: there are dozens of runs, not thousands."""
    model = _ensemble().GradientBoostingRegressor(
        n_estimators=60, learning_rate=0.1, max_depth=2, min_samples_leaf=2, subsample=1.0, loss="huber", random_state=0
    )
    model.fit(rows, residuals)
    return lambda row: float(model.predict([row])[0])


def _ensemble() -> Any:
    """scikit-learn's. Raises ConfigError if it is not installed."""
    try:
        from sklearn import ensemble  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "--runs needs the package scikit-learn, which is not installed. Fix: pip install 'lowcomm[planner]'"
        ) from error
    return ensemble


def _range(ordered: Sequence[float]) -> tuple[float, float]:
    """Between these two of n values the next one is expected with the odds of `RANGE`: ranks of n + 1, no others."""
    count = len(ordered)
    low = max(1, math.floor(RANGE[0] * (count + 1)))
    high = min(count, math.ceil(RANGE[1] * (count + 1)))
    return ordered[low - 1], ordered[high - 1]
