"""A configuration read back from JSON that somebody else wrote: data, never code.

Each object names its class; only frozen dataclasses of this package's own stages and of the recipes that came with it
are made, by their fields, whose types are checked. Nothing else is imported, and nothing is called with the text.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, cast

from lowcomm.config import RunConfig
from lowcomm.config_file import to_dict
from lowcomm.recipe import class_of_packaged
from lowcomm.typecheck import check_types
from lowcomm.types import ConfigError

STAGES = (
    "aggregate", "arrival", "attack", "codec", "config", "data", "exchange", "island", "local", "mixing", "model",
    "outer",
    "privacy", "sampling", "schedule", "secure", "smollm2", "tiny_base", "topology", "zeroth_order",
)  # fmt: skip
"""Packages and modules of lowcomm whose settings a configuration is made of."""
_NAME = re.compile(r"lowcomm((?:\.[a-z][a-z0-9_]*)+)\.([A-Z][A-Za-z0-9]*)")
_OF_RECIPE = re.compile(r"lowcomm_recipe_([a-z][a-z0-9_]*)\.([A-Z][A-Za-z0-9]*)")


def read_config(values: Mapping[str, Any]) -> RunConfig:
    """What `config_file.to_dict` was given. Raises ConfigError, on one line, for anything else."""
    config = _object(values, "configuration", RunConfig)
    assert isinstance(config, RunConfig)
    check_types(config)
    return config


def check_readable(config: RunConfig) -> None:
    """Raise ConfigError for a configuration that others can't read back: classes of a recipe of one's own."""
    try:
        same = read_config(to_dict(config)) == config
    except ConfigError as error:
        raise ConfigError(f"this configuration can't go into a store, where others read it as data: {error}") from error
    if not same:
        raise ConfigError(
            "this configuration can't go into a store: what others would read is another one. Fix: use the classes "
            "of lowcomm and of its packaged recipes only"
        )


def _object(values: Mapping[str, Any], name: str, wanted: type | None = None) -> object:
    kind = _class(values.get("type"), name)
    if wanted is not None and kind is not wanted:
        raise _bad(name, values.get("type"), f"lowcomm.{wanted.__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    unknown = set(values) - {"type"} - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise _bad(f"{name}.{min(unknown)}", "a field", f"fields of {kind.__name__}: another version wrote it")
    given = {key: _value(values[key], hints.get(key, Any), f"{name}.{key}") for key in fields if key in values}
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise _bad(name, kind.__name__, f"what {kind.__name__} takes ({error})") from error


def _value(value: Any, hint: Any, name: str) -> Any:
    """The value that a field of this type had."""
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        if "type" in table:
            return _object(table, name)
        inner = next((typing.get_args(h)[1] for h in _choices(hint) if typing.get_origin(h) in (dict, Mapping)), Any)
        return {str(k): _value(v, inner, f"{name}.{k}") for k, v in table.items()}
    if isinstance(value, list):
        return _sequence(cast("list[Any]", value), hint, name)
    if isinstance(value, str) and Path in _choices(hint) and str not in _choices(hint):
        return Path(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise _bad(name, type(value).__name__, "JSON values")


def _sequence(values: list[Any], hint: Any, name: str) -> Any:
    kinds = [h for h in _choices(hint) if typing.get_origin(h) in (tuple, list)]
    inner = typing.get_args(kinds[0]) if kinds else ()
    of = [
        inner[min(i, len(inner) - 1)] if inner and inner[-1] is not ... else (inner or (Any,))[0]
        for i in range(len(values))
    ]
    made = [_value(v, h, f"{name}[{i}]") for i, (v, h) in enumerate(zip(values, of, strict=True))]
    return made if kinds and typing.get_origin(kinds[0]) is list else tuple(made)


def _choices(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (Union, types.UnionType)
    return tuple(h for h in (typing.get_args(hint) if union else (hint,)) if typing.get_origin(h) is not Literal)


def _class(name: object, where: str) -> type:
    """The class that a text names, if it is on the list."""
    found: object = None
    if isinstance(name, str) and len(name) <= 200:
        if match := _NAME.fullmatch(name):
            path, attribute = match[1].lstrip("."), match[2]
            if path.split(".")[0] in STAGES:
                found = _attribute(f"lowcomm.{path}", attribute)
        elif match := _OF_RECIPE.fullmatch(name):
            found = class_of_packaged(match[1], match[2])
    frozen = isinstance(found, type) and getattr(getattr(found, "__dataclass_params__", None), "frozen", False)
    if not isinstance(found, type) or not frozen:
        raise _bad(where, name, "a settings class of lowcomm or of its packaged recipes")
    return found


def _attribute(module: str, attribute: str) -> object:
    try:
        held = importlib.import_module(module)
    except ImportError:
        return None
    found = getattr(held, attribute, None)
    return found if getattr(found, "__module__", None) == module else None


def _bad(name: str, value: object, legal: str) -> ConfigError:
    shown = repr(value)[:120]
    return ConfigError(f"{name} = {shown} is not allowed: {legal}. Fix: install the version of lowcomm that wrote it.")
