"""The one-minute example of CONTRIBUTING.md, as a newcomer would paste it: it trains, and it is what it says."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowcomm import recipe
from lowcomm.config import SyncConfig
from lowcomm.outer import SGD
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.support import runs, toy

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    source = TEXT.split("```python\n")[1].split("```")[0]
    assert source.startswith("# lowcomm/outer/sign.py")
    path = tmp_path_factory.mktemp("example") / "sign.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("contributed_sign", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["contributed_sign"] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_trains_in_a_loop_and_in_a_run(example: ModuleType, tmp_path: Path) -> None:
    outer: Any = example.OuterSign()
    sync = toy.build(2, outer=outer)
    before = sync.weights()["first.weight"].clone()
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
    moved = (sync.weights()["first.weight"] - before).abs()
    assert sync.round == 1 and torch.allclose(moved, torch.full_like(moved, 0.001), atol=1e-6)
    config = runs.small(runs.write_corpus(tmp_path), tmp_path / "run", sync=SyncConfig(every=4, outer=outer))
    assert train(config) == 0
    with pytest.raises(ConfigError, match=r"sync\.outer\.lr = 0"):
        train(dataclasses.replace(config, sync=SyncConfig(every=4, outer=example.OuterSign(lr=0.0))))


def test_it_reduces_to_sgd_on_deltas_of_size_1(example: ModuleType) -> None:
    signed, plain = torch.zeros(9), torch.zeros(9)
    for p, outer in ((signed, example.OuterSign(lr=0.5)), (plain, SGD(lr=0.5))):
        p.requires_grad_(True).grad = torch.tensor([1.0, -1.0, 1.0] * 3)
        outer.build([p]).step()
    assert torch.equal(signed, plain)


def test_it_fits_a_recipe_file(example: ModuleType, tmp_path: Path) -> None:
    """A recipe that imports it is loaded, as the text says: nothing else knows its name."""
    path = tmp_path / "signed.py"
    path.write_text(
        "import contributed_sign\nfrom lowcomm.config import RunConfig, SyncConfig\n\n"
        "def smoke():\n    return RunConfig(sync=SyncConfig(outer=contributed_sign.OuterSign(lr=0.01)))\n",
        encoding="utf-8",
    )
    assert recipe.load(f"{path}:smoke").sync.outer == example.OuterSign(lr=0.01)
