"""Objects in fields that are for something else: refused in one line, in recipes, parts of parts, and loops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import lowcomm as lc
from lowcomm import codec, data, island, outer, recipe, schedule
from lowcomm.config import RunConfig
from lowcomm.config_check import check
from lowcomm.integrations.settings import Settings
from lowcomm.model import LoRA, ModelConfig
from lowcomm.typecheck import check_types
from lowcomm.types import ConfigError
from tests import methods
from tests.support import toy


def changed(path: str, value: Any) -> RunConfig:
    """The default configuration with one value, wherever it lies."""

    def put(config: Any, names: list[str]) -> Any:
        new = value if len(names) == 1 else put(getattr(config, names[0]), names[1:])
        return dataclasses.replace(config, **{names[0]: new})

    return put(RunConfig(islands=2, data=data.DataConfig()), path.split("."))


MISFITS: list[tuple[str, Any, str]] = [
    ("sync.codec", codec.Zstd(), r"a Codec is wanted\. Fix: put it behind a codec, as in Int8\(\) \| Zstd\(\)"),
    ("sync.codec", codec.Ans(), "put it behind a codec"),
    ("sync.codec", codec.Int8, r"Int8 \(a class\) .*write Int8\(\.\.\.\): an instance"),
    ("sync.codec", "int8", r"'int8' is not allowed: a Codec is wanted\. Fix: give a Codec, such as Fp32\(\)"),
    ("sync.codec", None, "None is not allowed: a Codec"),
    ("sync.codec", outer.SGD(lr=1.0), "a Codec is wanted"),
    ("sync.codec", codec.ErrorFeedback(codec=codec.Zstd()), r"sync\.codec\.codec = Zstd"),  # pyright: ignore[reportArgumentType]
    ("sync.codec", codec.Graded(codecs=(codec.Int4(), codec.Zstd())), r"sync\.codec\.codecs"),  # pyright: ignore[reportArgumentType]
    ("sync.outer", island.AdamW(), "an Outer is wanted"),
    ("sync.outer", torch.optim.SGD([torch.zeros(1)], lr=1.0), "an Outer is wanted"),
    ("sync.schedule", codec.Int8(), "a Schedule is wanted"),
    ("sync.aggregator", outer.Nesterov(), "an Aggregator is wanted"),
    ("sync.privacy", 1.0, "a Mechanism or None"),
    ("sync.every", "32", "an int is wanted"),
    ("sync.every", 32.0, "an int is wanted"),
    ("sync.every", True, "an int is wanted"),
    ("sync.quorum", "half", "a float is wanted"),
    ("sync.buffers", {"*": 1}, r"sync\.buffers"),
    ("sync.local_steps", (1, "2"), r"sync\.local_steps"),
    ("inner.optimizer", outer.SGD(lr=1.0), "an Inner is wanted"),
    ("inner.optimizer", torch.optim.AdamW, "an Inner is wanted"),
    ("inner.optimizer.lr", "3e-3", "a float is wanted"),
    ("data.source", "corpus.txt", "a Source is wanted"),
    ("data.tokenizer", data.TextFiles(glob="*.txt"), r"data\.tokenizer"),
    ("model.directory", "base", r"write Path\('base'\)"),
    ("model.tuning", LoRA, r"LoRA \(a class\)"),
    ("model.origin", Path("base"), "an Origin is wanted"),
    ("run_dir", "runs/x", r"write Path\('runs/x'\)"),
    ("transport", "tcp", "one of collective, simulated"),
    ("steps", None, "an int is wanted"),
    ("eval", None, "an EvalConfig is wanted"),
]


@pytest.mark.parametrize(("path", "value", "words"), MISFITS)
def test_a_value_of_another_type_is_refused_by_field(path: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check(changed(path, value), 2)
    assert str(caught.value).startswith(path) and "Fix: " in str(caught.value) and "\n" not in str(caught.value)


def test_every_method_and_recipe_is_of_its_types() -> None:
    for name, tried in vars(methods).items():
        for method in tried if name.isupper() and isinstance(tried, tuple) else ():
            check_types(method, name)
    for packaged in recipe.packaged():
        check_types(recipe.load(packaged.name))
    check_types(RunConfig(model=ModelConfig(tuning=LoRA(targets=["q_proj"]))))  # pyright: ignore[reportArgumentType] # as JSON has it


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("codec", codec.Zstd(), "put it behind a codec"),
        ("codec", codec.Int8, "an instance, not the class"),
        ("codec", codec.ErrorFeedback(codec=codec.Ans()), r"codec\.codec = Ans"),  # pyright: ignore[reportArgumentType]
        ("outer", codec.Int8(), "an Outer is wanted"),
        ("schedule", schedule.EveryH, "an instance, not the class"),
        ("aggregator", outer.SGD(lr=1.0), "an Aggregator is wanted"),
        ("privacy", "none", "a Mechanism or None is wanted"),
        ("every", "4", "an int is wanted"),
    ],
)
def test_a_loop_is_told_the_same(name: str, value: Any, words: str) -> None:
    model = toy.Net()
    arguments: dict[str, Any] = {"every": 4, name: value}
    with pytest.raises(ConfigError, match=words):
        lc.LocalSGD(model, toy.sgd(model), **arguments)


def test_an_integration_is_told_before_it_has_a_model() -> None:
    with pytest.raises(ConfigError, match="put it behind a codec"):
        Settings.of(every=4, codec=codec.Zstd())  # pyright: ignore[reportArgumentType]


def test_models_and_inner_optimizers_are_what_they_should_be() -> None:
    model: Any = toy.Net()
    with pytest.raises(ConfigError, match=r"inner = AdamW.* is not allowed: an Optimizer is wanted"):
        lc.LocalSGD(model, island.AdamW(), every=4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"inner = .*AdamW \(a class\).*an instance"):
        lc.DiLoCo(model, torch.optim.AdamW, every=4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"model = .* is not allowed: a Module is wanted"):
        lc.LocalSGD(model.parameters(), toy.sgd(model), every=4)
    lc.LocalSGD((model,), iter([toy.sgd(model)]), every=4)  # pyright: ignore[reportArgumentType]
