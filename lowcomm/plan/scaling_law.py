"""The local-SGD scaling law, fitted to runs (Scaling Laws for DiLoCo, arXiv 2503.09799).

    L = A N^alpha M^beta H^gamma

L: validation loss (nats per token); N: parameters; M: islands; H: inner steps per round. The paper has no H; here its
term is there when the runs differ in H, and so for N and M: without a difference there is nothing to fit, the factor
is part of A. The fit is linear regression of log L, with Huber's loss so that single runs that went astray do not pull
it, solved by reweighting. Intervals come from resampled residuals, widened for the degrees of freedom that the fit has
used up. They hold if the law does: what bends away from a power law outside of the fitted range is in no interval.

Raises ConfigError for losses or sizes that have no logarithm, and for too few runs. Deviations from the paper: Huber's
threshold follows the spread of the residuals (1.345 robust standard deviations), the paper's is fixed at 1e-3.
Reduces to: least squares when no residual is large; with equal M and H it is the usual power law in N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.types import ConfigError, require

HUBER = 1.345
"""Residuals above so many standard deviations count linearly: 95 % efficient on normal ones."""
ROUNDS = 100
TERMS = (("alpha", "parameters"), ("beta", "islands"), ("gamma", "every"))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: trainable parameters, islands, inner steps per round, validation loss in nats per token."""

    parameters: int
    islands: int
    every: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law; `draws` [samples, 1 + terms] are refits of resampled residuals, log A first."""

    terms: tuple[str, ...]
    """Which of alpha, beta, gamma were fitted."""
    coefficients: np.ndarray
    draws: np.ndarray
    residuals: np.ndarray
    """Of log L, widened for the degrees of freedom."""
    confidence: float
    runs: int

    @property
    def constants(self) -> dict[str, Interval]:
        """A and the fitted exponents with their intervals."""
        named = {"A": self._interval(math.exp(self.coefficients[0]), np.exp(self.draws[:, 0]))}
        for i, name in enumerate(self.terms, start=1):
            named[name] = self._interval(float(self.coefficients[i]), self.draws[:, i])
        return named

    @property
    def spread(self) -> float:
        """Typical relative error of one run's loss: root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def predict(self, parameters: int, islands: int, every: int) -> Interval:
        """Loss (nats per token) of one new run, with the interval that it should fall in."""
        row = _row(Point(parameters=parameters, islands=islands, every=every, loss=1.0), self.terms)
        noise = np.random.default_rng(1).choice(self.residuals, len(self.draws))
        return self._interval(float(np.exp(row @ self.coefficients)), np.exp(self.draws @ row + noise))

    def _interval(self, value: float, draws: np.ndarray) -> Interval:
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Interval(value=value, low=float(low), high=float(high))


def fit(points: Sequence[Point], *, samples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Law:
    """Fit the terms in which the points differ. Needs two runs more than constants."""
    for point in points:
        ok = math.isfinite(point.loss) and point.loss > 0
        require(ok, "loss", point.loss, "a finite number above 0", "leave out runs that diverged")
        for name in ("parameters", "islands", "every"):
            require(getattr(point, name) >= 1, name, getattr(point, name), "1 or more", "give what the run had")
    require(0 < confidence < 1, "confidence", confidence, "above 0 and below 1", "0.95 is usual")
    require(samples >= 100, "samples", samples, "100 or more", "2000 is usual")
    terms = tuple(name for name, field in TERMS if len({getattr(p, field) for p in points}) > 1)
    needed = len(terms) + 3
    if len(points) < needed:
        raise ConfigError(
            f"{len(points)} runs are too few to fit {len(terms) + 1} constants with confidence: {needed} or more. "
            "Fix: add sizes, islands, periods or seeds to the sweep"
        )
    design = np.array([_row(p, terms) for p in points])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ConfigError(
            f"the runs can't tell {', '.join(terms)} apart: they change together. Fix: sweep a grid, not a diagonal"
        )
    logs = np.log([p.loss for p in points])
    coefficients = _huber(design, logs[None])[0]
    fitted = design @ coefficients
    residuals = (logs - fitted) * math.sqrt(len(logs) / (len(logs) - design.shape[1]))
    generator = np.random.default_rng(seed)
    draws = _huber(design, fitted + generator.choice(residuals, (samples, len(logs))))
    return Law(
        terms=terms,
        coefficients=coefficients,
        draws=draws,
        residuals=residuals,
        confidence=confidence,
        runs=len(points),
    )


def _row(point: Point, terms: Sequence[str]) -> np.ndarray:
    return np.array([1.0, *(math.log(getattr(point, field)) for name, field in TERMS if name in terms)])


def _huber(design: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Coefficients [sets, terms] for logs [sets, runs] by reweighted least squares, all sets at once.

    The scale is the median absolute residual. Columns are made orthonormal first, since log N is far from 0.
    """
    basis, triangle = np.linalg.qr(design)
    found = logs @ basis
    for _ in range(ROUNDS):
        residuals = np.abs(logs - found @ basis.T)
        scale = 1.4826 * np.median(residuals, axis=1, keepdims=True)
        weights = np.minimum(1.0, HUBER * scale / np.maximum(residuals, 1e-300))
        weights[scale[:, 0] < 1e-12] = 1.0  # an exact fit
        products = np.einsum("sr,ri,rj->sij", weights, basis, basis)
        before, found = found, np.linalg.solve(products, ((weights * logs) @ basis)[..., None])[..., 0]
        if np.allclose(before, found, rtol=1e-9, atol=1e-12):
            break
    return np.linalg.solve(triangle, found.T).T
