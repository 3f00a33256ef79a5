"""Configurations that are read back: the same ones, and nothing but settings of this package."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from lowcomm.config import RunConfig
from lowcomm.config_file import to_dict
from lowcomm.config_read import check_readable, read_config
from lowcomm.recipe import load, packaged
from lowcomm.types import ConfigError


def test_what_recipes_return_comes_back_as_it_was() -> None:
    for recipe in packaged():
        config = load(recipe.name)
        assert read_config(json.loads(json.dumps(to_dict(config)))) == config, recipe.name
        check_readable(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("type", "lowcomm.config.SyncConfig"),
        ("sync.codec.type", "os.system"),
        ("sync.codec.type", "lowcomm.store.directory.DirectoryObjects"),
        ("sync.codec.type", "lowcomm.codec.fp32.Codec"),
        ("sync.codec.type", "lowcomm.codec.nowhere.Fp32"),
        ("sync.codec.type", "lowcomm.codec.fp32.Fp32.__init__"),
        ("sync.codec.type", "lowcomm_recipe_diloco.smoke"),
        ("sync.codec.type", "lowcomm_recipe_../x.Y"),
        ("sync.codec.type", "lowcomm.outer.sgd.SGD"),
        ("sync.codec.type", ["lowcomm.codec.fp32.Fp32"]),
        ("sync.codec", "Fp32()"),
        ("sync.codec.more", 1),
        ("sync.every", "32"),
        ("sync.outer.lr", {"type": "lowcomm.codec.fp32.Fp32"}),
        ("steps", None),
        ("data.source", {"type": "lowcomm.data.text_files.TextFiles"}),
    ],
)
def test_anything_else_is_refused_in_one_line(path: str, value: Any) -> None:
    values = copy.deepcopy(to_dict(RunConfig()))
    *parents, last = path.split(".")
    place = values
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ConfigError) as error:
        read_config(values)
    assert "\n" not in str(error.value) and "Fix" in str(error.value)
