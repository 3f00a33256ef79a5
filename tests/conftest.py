"""One thread everywhere, and the switch that rewrites golden files."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="rewrite tests/golden from what the code does now"
    )


@pytest.fixture
def regenerate_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--regenerate-golden"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits may depend on the number of threads, and two cores are shared by several processes of a test."""
    torch.set_num_threads(1)
