"""Unequal parts of a sum: the linear programme of DeDLOC, its reductions and its refusals."""

from __future__ import annotations

import random

import pytest

from lowcomm.plan.unequal_parts import parts_of_sum
from lowcomm.types import ConfigError


def slowest_s(rates: list[float], shares: list[float]) -> float:
    """Of a vector of one byte."""
    return max((1 + (len(rates) - 2) * a) / rate for rate, a in zip(rates, shares, strict=True))


def test_equal_rates_reduce_equal_parts() -> None:
    for islands in (2, 3, 8):
        shares, sum_s = parts_of_sum([5.0] * islands, [5.0] * islands)
        assert shares == pytest.approx([1 / islands] * islands)
        assert sum_s == pytest.approx((2 - 2 / islands) / 5.0), "as a ring"


def test_the_slow_reduce_nothing_and_the_unreachable_neither() -> None:
    shares, sum_s = parts_of_sum([10.0, 10.0, 10.0, 1.0], [10.0] * 4)
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0]) and sum_s == 1.0
    shares, _ = parts_of_sum([10.0] * 4, [10.0] * 4, [True, False, True, False])
    assert shares == pytest.approx([0.5, 0.0, 0.5, 0.0])
    assert parts_of_sum([2.0, 1.0], [2.0, 1.0], [False, True]) == ([0.0, 1.0], 1.0)


def test_it_is_the_solution_of_the_linear_programme() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    draw = random.Random(3)
    for _ in range(30):
        islands = draw.randint(3, 9)
        up, down = ([draw.choice((1.0, 2.0, 5.0, 20.0)) * draw.uniform(0.5, 1) for _ in range(islands)] for _ in "ud")
        rates = [min(pair) for pair in zip(up, down, strict=True)]
        shares, sum_s = parts_of_sum(up, down)
        assert sum(shares) == pytest.approx(1) and min(shares) >= 0
        assert slowest_s(rates, shares) == pytest.approx(sum_s)
        rows = [[(islands - 2) / r if j == k else 0.0 for j in range(islands)] + [-1.0] for k, r in enumerate(rates)]
        found = optimize.linprog(
            [0.0] * islands + [1.0], A_ub=rows, b_ub=[-1 / r for r in rates], A_eq=[[1.0] * islands + [0.0]], b_eq=[1.0]
        )
        assert sum_s == pytest.approx(found.fun)


def test_bad_rates_are_refused() -> None:
    for upload, accepts in (([1.0], None), ([1.0, 0.0], None), ([1.0, 1.0], [False, False])):
        with pytest.raises(ConfigError, match="Fix: ") as caught:
            parts_of_sum(upload, [1.0] * len(upload), accepts)
        assert "\n" not in str(caught.value)
