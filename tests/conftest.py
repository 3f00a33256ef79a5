"""One thread everywhere, hypothesis' profiles, which tests stay together, and the switch that rewrites golden files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

NETWORK = frozenset(f"test_{name}.py" for name in ("netlab", "launch_sites", "launch_slurm", "launch_ssh", "two_nodes"))
"""Files that set up network namespaces, whose names and addresses are the machine's."""
LONG_FACTOR = 10
"""Examples of a property in `make test-long`, as a multiple of those in `make test`."""

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="rewrite tests/golden from what the code does now"
    )
    parser.addoption("--long", action="store_true", help="whole matrices, and many more examples of each property")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files whose tests take long come first, so that no worker begins one when the other has nothing left."""
    long = config.getoption("--long")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable
    for item in items:
        if item.get_closest_marker("long") and not long:
            item.add_marker(pytest.mark.skip(reason="long: make test-long runs it"))
        if long:
            _more_examples(item)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers take whole files, whose tests share fixtures; those of `NETWORK` are one, so that no two run at once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0].rpartition("/")[2]
            return "network" if file in NETWORK else file

    return ByFile(config, log)


def _more_examples(item: pytest.Item) -> None:
    """Multiply the examples of a property, whatever it asks for itself."""
    function = getattr(item, "obj", None)
    inner = getattr(function, "_hypothesis_internal_use_settings", None)
    if inner is not None and not getattr(function, "_lengthened", False):
        function._hypothesis_internal_use_settings = settings(inner, max_examples=LONG_FACTOR * inner.max_examples)
        function._lengthened = True


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether whole matrices are to be run."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def regenerate_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--regenerate-golden"))


@pytest.fixture(scope="session", autouse=True)
def one_core() -> Iterator[None]:
    """Runs in this process that ask for no number of threads take one: two of them spin when others use the cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowcomm.run.assembly.available_cores", lambda: 1)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits may depend on the number of threads, and two cores are shared by several processes of a test."""
    torch.set_num_threads(1)
