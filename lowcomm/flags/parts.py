"""Parts of a configuration by the name of their class: those that lowcomm itself has for a field, and no others."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union, cast

from lowcomm.flags.spec import Call, Piped
from lowcomm.typecheck import check_type, check_types
from lowcomm.types import ConfigError

ELSEWHERE = ("lowcomm.exchange.modest", "lowcomm.tiny_base", "lowcomm.smollm2")
"""Modules with parts that a configuration does not import."""


def known(base: type) -> dict[str, type]:
    """The parts that may stand where `base` is wanted, by name."""
    for module in ELSEWHERE:
        importlib.import_module(module)
    found = {cls.__name__: cls for cls in (base, *_below(base)) if _is_part(cls)}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def bases(hint: Any) -> tuple[type, ...]:
    """Classes of lowcomm's parts that an annotation names, at any depth; sections of a configuration are none."""
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        ours = hint.__module__.startswith("lowcomm.") and (inspect.isabstract(hint) or dataclasses.is_dataclass(hint))
        return (hint,) if ours else ()
    return tuple(base for argument in typing.get_args(hint) for base in bases(argument))


def is_part_field(hint: Any) -> bool:
    """Whether a field takes parts: an abstract class, or one that may be None."""
    optional = typing.get_origin(hint) in (Union, types.UnionType)
    return any(optional or inspect.isabstract(base) for base in bases(hint))


def build(spec: object, hint: Any, name: str) -> object:
    """The value that a spec (`lowcomm.flags.spec`) stands for. Raises ConfigError. name: of the field, for messages."""
    value = _built(spec, hint, name)
    check_type(value, hint, name)
    if dataclasses.is_dataclass(value):
        check_types(value, name)
    return value


def _built(spec: object, hint: Any, name: str) -> object:
    if isinstance(spec, Call):
        return _called(spec, hint, name)
    if isinstance(spec, Piped):
        return _piped(spec, name)
    if isinstance(spec, tuple):
        return tuple(_built(item, hint, name) for item in cast("tuple[object, ...]", spec))
    if isinstance(spec, dict):
        return {key: _built(item, hint, name) for key, item in cast("Mapping[str, object]", spec).items()}
    leaves = tuple(_leaves(hint))
    return Path(spec) if isinstance(spec, str) and Path in leaves and str not in leaves else spec


def _piped(spec: Piped, name: str) -> object:
    from lowcomm.codec import Codec
    from lowcomm.codec.chain import join
    from lowcomm.codec.stage import Stage

    first, then = _built(spec.first, Codec, name), _built(spec.then, Codec | Stage, name)
    try:
        return join(cast("Codec", first), then)
    except ConfigError as error:
        raise ConfigError(f"{name} = {error}") from error


def _called(spec: Call, hint: Any, name: str) -> object:
    if _plain(spec.name) == "none" and not spec.fields:
        return None
    cls = _find(spec.name, hint, name)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints, given = typing.get_type_hints(cls), dict(spec.fields)
    unknown = next((field for field in given if field not in fields), None)
    if unknown is not None:
        raise ConfigError(
            f"{name}.{unknown} is not allowed: {cls.__name__} has {shown_fields(cls)}. "
            f"Fix: {_nearest(unknown, fields) or 'use one of these'}"
        )
    missing = next((n for n, f in fields.items() if n not in given and _is_required(f)), None)
    if missing is not None:
        raise ConfigError(
            f"{name} = {cls.__name__}() is not allowed without {missing}: it has {shown_fields(cls)}. "
            f"Fix: write '{cls.__name__}({missing}=...)'"
        )
    values = {field: _built(item, hints[field], f"{name}.{field}") for field, item in given.items()}
    for field, value in values.items():
        check_type(value, hints[field], f"{name}.{field}")
    return cls(**values)


def _find(wanted: str, hint: Any, name: str) -> type:
    """By name; capitals and underscores do not matter."""
    choices = {n: cls for base in bases(hint) for n, cls in known(base).items()}
    cls = choices.get(wanted) or {_plain(n): c for n, c in choices.items()}.get(_plain(wanted))
    if cls is not None:
        return cls
    legal = f"one of {', '.join(choices)}" if choices else "a finite number, True, False, None or text in quotes"
    plain = "give one that the field takes"
    fix = _belongs(wanted, hint) or _nearest(wanted, choices) or ("use one of these" if choices else plain)
    raise ConfigError(f"{name} = {wanted!r} is not allowed: {legal}. Fix: {fix}")


def _belongs(wanted: str, hint: Any) -> str | None:
    """Where something belongs that has the name of no part, such as a stage of a codec."""
    packages = [sys.modules[base.__module__.rpartition(".")[0]] for base in bases(hint)]
    return next((b for m in packages if (b := getattr(getattr(m, wanted, None), "belongs", None))), None)


def fields_of(cls: type) -> list[dataclasses.Field[Any]]:
    """Those that a spec may set, required ones first."""
    return sorted((f for f in dataclasses.fields(cls) if f.init), key=lambda f: not _is_required(f))


def shown_fields(cls: type) -> str:
    """Its fields with their defaults on one line."""
    fields = fields_of(cls)
    if not fields:
        return "no fields"
    return "the fields " + ", ".join(f"{f.name} (required)" if _is_required(f) else _default(f) for f in fields)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"{field.name}={field.default!r}"
    return f"{field.name}={getattr(field.default_factory, '__name__', '')}()"


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _nearest(wanted: str, choices: Mapping[str, object]) -> str | None:
    plain = {_plain(n): n for n in choices}
    found = difflib.get_close_matches(_plain(wanted), list(plain), n=1)
    return f"write {plain[found[0]]}" if found else None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _leaves(hint: Any) -> Iterator[object]:
    arguments = typing.get_args(hint)
    if not arguments:
        yield hint
    for argument in arguments:
        yield from _leaves(argument)


def _below(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _below(cls)


def _is_part(cls: type) -> bool:
    """A concrete frozen dataclass of lowcomm's own that its package exports, where that exports anything."""
    ours = cls.__module__.startswith("lowcomm.") and "__dataclass_params__" in vars(cls)
    if not ours or inspect.isabstract(cls) or cls.__name__.startswith("_"):
        return False
    names = cls.__module__.split(".")[1:-1]
    packages = [sys.modules[".".join(["lowcomm", *names[: i + 1]])] for i in range(len(names))]
    exports = [getattr(package, "__all__", None) for package in packages]
    return not exports or any(e is None or cls.__name__ in e for e in exports)
