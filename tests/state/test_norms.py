"""Norms of large tensors, against fp64."""

from __future__ import annotations

import math

import pytest
import torch

from lowcomm.state.norms import ROW, l2_norm


@pytest.mark.parametrize("numel", [0, 1, ROW - 1, ROW, ROW + 1, 100 * ROW + 7, 4_000_000])
def test_equal_elements_do_not_drift(numel: int) -> None:
    equal = torch.full((numel,), 0.037)
    assert float(l2_norm(equal)) == pytest.approx(float(equal[:1].double().sum()) * math.sqrt(numel), rel=1e-5)


def test_shapes_and_what_is_not_finite() -> None:
    assert float(l2_norm(torch.ones(3, 4).t())) == pytest.approx(math.sqrt(12))
    for value in (math.inf, math.nan):
        big = torch.ones(2 * ROW)
        big[5] = value
        assert not math.isfinite(float(l2_norm(big)))
