"""Epsilon of Gaussian mechanisms by dp-accounting's privacy loss distributions (PLD).

Sommer, Meiser, Mohammadi, PoPETs 2019; Doroshenko et al., Connect the Dots, arXiv 2207.04380; package dp-accounting.
k mechanisms of multiplier z without sampling are exactly one of z / sqrt(k): one distribution instead of k, no
convolution. With Poisson sampling they are composed by the package.
Neighbours: one more or one less of those who are protected.
Raises: ConfigError if the package is missing, or for a delta out of range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lowcomm.types import ConfigError, require

INTERVAL = 1e-3
"""Grid of the privacy loss, ten times the package's own: a distribution without convolution is off by 1e-5."""


@dataclass(frozen=True, kw_only=True)
class Released:
    """Gaussian mechanisms of one kind that ran."""

    noise_multiplier: float
    count: int
    probability: float = 1.0
    """Chance of each of those who are protected to take part in one of them (Poisson sampling); 1: no sampling."""


def epsilon(released: Sequence[Released], delta: float) -> float:
    """Epsilon of all of them together at `delta`; math.inf without noise."""
    require(0 < delta < 1, "delta", delta, "0 < delta < 1", "1e-5")
    ran = [r for r in released if r.count > 0 and r.probability > 0]
    if not ran:
        return 0.0
    if any(r.noise_multiplier <= 0 for r in ran):
        return math.inf
    squares = sum(r.count / r.noise_multiplier**2 for r in ran if r.probability >= 1)
    sampled = tuple(r for r in ran if r.probability < 1)
    return _by_pld(squares, sampled, delta)


def load_dp_accounting() -> Any:
    """The package with its PLD accountant; raises ConfigError if it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.pld
    except ImportError as error:
        raise ConfigError(
            "sync.privacy needs the package dp-accounting, which is not installed. Fix: pip install 'lowcomm[privacy]'"
        ) from error
    return dp_accounting


@lru_cache(maxsize=256)
def _by_pld(squares: float, sampled: tuple[Released, ...], delta: float) -> float:
    package = load_dp_accounting()
    accountant = package.pld.PLDAccountant(value_discretization_interval=1e-4 if sampled else INTERVAL)
    if squares > 0:
        accountant.compose(package.GaussianDpEvent(1 / math.sqrt(squares)))
    for r in sampled:
        event = package.PoissonSampledDpEvent(r.probability, package.GaussianDpEvent(r.noise_multiplier))
        accountant.compose(event, r.count)
    return float(accountant.get_epsilon(delta))
