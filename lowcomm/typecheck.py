"""The proof that a configuration holds in every field what the field is for, before anything uses it.

A recipe is Python: nothing stops `codec=Zstd()` (a stage, no codec), `outer=AdamW` (a class) or `steps="640"`. Values
are compared with the annotations of their dataclasses; annotations that say too little to judge are taken to fit.
"""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from lowcomm.types import ConfigError

T = TypeVar("T")


def check_types(config: object, prefix: str = "") -> None:
    """Raise ConfigError for the first field, or field of a part, whose value is not of its type.

    config: a dataclass; prefix: its own name, "" for the whole.
    """
    assert dataclasses.is_dataclass(config)
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        name = f"{prefix}.{field.name}" if prefix else field.name
        value = getattr(config, field.name)
        if field.name in hints:
            check_type(value, hints[field.name], name, _example(field))
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if dataclasses.is_dataclass(part) and not isinstance(part, type):
                check_types(part, name)


def check_type(value: object, hint: Any, name: str, example: str | None = None) -> None:
    """Raise ConfigError unless a value is of a type as annotations have it. example: what to write instead."""
    if fits(value, hint):
        return
    legal = _said(hint)
    if isinstance(value, type) and any(isinstance(h, type) and issubclass(value, h) for h in _choices(hint)):
        fix = f"write {value.__name__}(...): an instance, not the class"
    elif (belongs := getattr(type(value), "belongs", None)) is not None:
        fix = belongs
    elif isinstance(value, str) and Path in _choices(hint):
        fix = f"write Path({value!r})"
    else:
        fix = f"give {legal}" + (f", such as {example}" if example else "")
    shown = f"{value.__name__} (a class)" if isinstance(value, type) else repr(value)
    raise ConfigError(f"{name} = {' '.join(shown.split())} is not allowed: {legal} is wanted. Fix: {fix}.")


def listed(value: T | Iterable[T], kind: type[T], name: str) -> list[T]:
    """One or several objects of a kind as a list. Raises ConfigError for anything else."""
    if isinstance(value, kind):
        return [value]
    several = list(cast("Iterable[T]", value)) if isinstance(value, Iterable) else [value]
    for one in several:
        check_type(one, kind, name)
    return several


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type; True for annotations that can't be judged."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, h) for h in arguments)
    if origin is Literal:
        return any(value is a or (type(value) is type(a) and value == a) for a in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is float or hint is int:
        kind = numbers.Real if hint is float else numbers.Integral
        return isinstance(value, kind) and not isinstance(value, bool)
    if origin in (tuple, list, Sequence):
        return _fits_sequence(value, arguments)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            return False
        pairs = cast("Mapping[object, object]", value).items()
        return all(fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in pairs)
    return isinstance(value, hint) if isinstance(hint, type) and origin is None else True


def _fits_sequence(value: object, arguments: tuple[Any, ...]) -> bool:
    if not isinstance(value, (tuple, list)):
        return False
    items = cast("Sequence[object]", value)
    if (len(arguments) == 2 and arguments[1] is ...) or len(arguments) == 1:
        return all(fits(item, arguments[0]) for item in items)
    return len(items) == len(arguments) and all(fits(i, a) for i, a in zip(items, arguments, strict=True))


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except (NameError, AttributeError, TypeError):  # a name that only type checkers see
        return {}


def _choices(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _said(hint: Any) -> str:
    """A type in words: a Codec, a float or None, one of average, local."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    words = ["None" if h in (None, type(None)) else _word(h) for h in _choices(hint)]
    return " or ".join(words)


def _word(hint: Any) -> str:
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return f"{'an' if hint.__name__[0] in 'AEIOUaeiou' else 'a'} {hint.__name__}"
    if typing.get_origin(hint) is Literal:
        return _said(hint)
    return str(hint).replace("lowcomm.", "").replace("typing.", "")


def _example(field: dataclasses.Field[Any]) -> str | None:
    factory = field.default_factory
    return f"{factory.__name__}()" if isinstance(factory, type) and factory.__module__ != "builtins" else None
