"""The scaling law: exact data give it back, noise widens the intervals, a run gone astray does not pull it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.plan.scaling_law import Point, fit
from lowcomm.types import ConfigError


def grid(a: float, alpha: float, beta: float, gamma: float = 0.0, noise: float = 0.0, seed: int = 0) -> list[Point]:
    generator = np.random.default_rng(seed)
    return [
        Point(
            parameters=n, islands=m, every=h,
            loss=a * n**alpha * m**beta * h**gamma * math.exp(noise * generator.standard_normal()),
        )
        for n in (30_000, 60_000, 120_000) for m in (1, 2, 4) for h in (16, 64)
    ]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(a=st.floats(1, 30), alpha=st.floats(-0.3, -0.01), beta=st.floats(0, 0.1), gamma=st.floats(-0.05, 0.1))
def test_exact_data_give_the_law_back(a: float, alpha: float, beta: float, gamma: float) -> None:
    law = fit(grid(a, alpha, beta, gamma), samples=100)
    assert law.terms == ("alpha", "beta", "gamma")
    for name, value in (("A", a), ("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        assert law.constants[name].value == pytest.approx(value, rel=1e-6, abs=1e-9)
    expected = a * 1_000_000**alpha * 8**beta * 32**gamma
    assert law.predict(1_000_000, 8, 32).value == pytest.approx(expected, rel=1e-6)


def test_the_published_fit_is_found_again() -> None:
    """L = 19.226 N^-.0985 M^.0116 (arXiv 2503.09799)."""
    points = [
        Point(parameters=n, islands=m, every=30, loss=19.226 * n**-0.0985 * m**0.0116)
        for n in (35_000_000, 180_000_000, 550_000_000, 2_400_000_000) for m in (1, 2, 4, 8)
    ]  # fmt: skip
    law = fit(points, samples=100)
    assert law.terms == ("alpha", "beta")
    assert law.constants["beta"].value == pytest.approx(0.0116, abs=1e-6)


def test_intervals_hold_as_often_as_they_say() -> None:
    """Over 60 noisy grids, the truth is in the 90 % intervals of exponents and of a new run about as often."""
    hits = {"alpha": 0, "beta": 0, "new": 0}
    generator = np.random.default_rng(7)
    for seed in range(60):
        law = fit(grid(20, -0.1, 0.02, 0.01, noise=0.01, seed=seed), samples=200, confidence=0.9, seed=seed)
        constants = law.constants
        for name, value in (("alpha", -0.1), ("beta", 0.02)):
            hits[name] += constants[name].low <= value <= constants[name].high
        new = 20 * 250_000**-0.1 * 2**0.02 * 64**0.01 * math.exp(0.01 * generator.standard_normal())
        predicted = law.predict(250_000, 2, 64)
        hits["new"] += predicted.low <= new <= predicted.high
    assert all(44 <= count <= 60 for count in hits.values()), hits
    assert law.spread == pytest.approx(0.01, rel=0.6)


def test_a_run_gone_astray_hardly_moves_it() -> None:
    points = grid(20, -0.1, 0.02, noise=0.002)
    astray = [dataclasses.replace(points[0], loss=points[0].loss * 1.5), *points[1:]]
    clean, pulled = fit(points, samples=100), fit(astray, samples=100)
    assert pulled.constants["alpha"].value == pytest.approx(clean.constants["alpha"].value, abs=0.004)
    design = np.array([[1, math.log(p.parameters), math.log(p.islands), math.log(p.every)] for p in astray])
    plain = np.linalg.lstsq(design, np.log([p.loss for p in astray]), rcond=None)[0][1]
    assert abs(plain - clean.constants["alpha"].value) > 0.02  # least squares alone is pulled


def test_what_does_not_change_is_part_of_the_factor() -> None:
    points = [p for p in grid(20, -0.1, 0.02) if p.islands == 2 and p.every == 16]
    law = fit([*points, *points], samples=100)
    assert law.terms == ("alpha",)
    assert law.constants["A"].value == pytest.approx(20 * 2**0.02)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (grid(20, -0.1, 0)[:4], "too few"),
        ([*grid(20, -0.1, 0), Point(parameters=10, islands=1, every=1, loss=math.nan)], "loss = nan"),
        ([*grid(20, -0.1, 0), Point(parameters=10, islands=1, every=1, loss=0.0)], "loss = 0.0"),
        ([*grid(20, -0.1, 0), Point(parameters=0, islands=1, every=1, loss=1.0)], "parameters = 0"),
        (
            [Point(parameters=10 * k, islands=k, every=5, loss=1.0 + k) for k in (1, 2, 4, 8, 16, 32)],
            "change together",
        ),
    ],
)
def test_what_can_not_be_fitted_is_refused(points: list[Point], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        fit(points)
    assert words in str(refused.value) and "Fix: " in str(refused.value) and "\n" not in str(refused.value)
