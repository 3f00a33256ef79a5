"""Parts that flags choose: `--sync.codec 'Int4(block=256)'` puts another codec into the recipe's configuration."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from lowcomm.flags.parts import bases, build, is_part_field, known
from lowcomm.flags.spec import parse
from lowcomm.types import ConfigError

Config = TypeVar("Config")


def assign_parts(config: Config, arguments: Sequence[str]) -> tuple[Config, list[str]]:
    """The configuration with the parts that arguments name, in their order, and the arguments that are left.

    Raises ConfigError for a part that is not known, or does not fit its field.
    """
    left: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        path = flag[2:].replace("-", "_").split(".") if flag.startswith("--") else []
        hint = part_hint(config, path)
        if hint is None:
            left.append(word)
            continue
        name = ".".join(path)
        spec = value if equals else next(words, None)
        if spec is None or spec.startswith("--"):
            raise ConfigError(f"--{name} wants a part: one of {_names(hint)}. Fix: --{name} '{_example(hint)}'")
        config = _replaced(config, path, build(parse(spec, name), hint, name))
    return config, left


def part_hint(config: object, path: Sequence[str]) -> Any:
    """The annotation of the field at a path, if it takes parts; None: it takes none, or there is no such field."""
    for depth, name in enumerate(path):
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            return None
        hint = typing.get_type_hints(type(config)).get(name)
        if hint is None or name not in {f.name for f in dataclasses.fields(config)}:
            return None
        if depth == len(path) - 1:
            return hint if is_part_field(hint) else None
        config = getattr(config, name)
    return None


def part_fields(config: object, prefix: str = "") -> Iterator[tuple[str, Any, object]]:
    """(path, annotation, value) of every field of a configuration that takes parts, and of the parts' own."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if is_part_field(hints[field.name]):
            yield name, hints[field.name], value
        yield from part_fields(value, f"{name}.")


def help_of_parts(config: object) -> str:
    """The end of --help: which parts may be put where."""
    lines = ["parts: in the place of the recipe's, as in --sync.codec 'ErrorFeedback(codec=Int4(block=256))'"]
    for name, hint, value in part_fields(config):
        lines.append(f"  --{name.replace('_', '-')} PART")
        now = "None" if value is None else type(value).__name__
        text = f"One of {_names(hint)}. (now: {now})"
        lines += textwrap.wrap(text, 78, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)
    lines.append("  A part's own fields are flags once it is chosen: add --help behind it to list them.")
    return "\n".join(lines) + "\n"


def _names(hint: Any) -> str:
    names = [name for base in bases(hint) for name in known(base)]
    return ", ".join([*names, "None"] if type(None) in typing.get_args(hint) else names)


def _example(hint: Any) -> str:
    return f"{next(iter(known(bases(hint)[0])), 'NAME')}(...)"


def _replaced(config: Any, path: Sequence[str], value: object) -> Any:
    """A copy with the field at the path set."""
    name, *below = path
    inner = _replaced(getattr(config, name), below, value) if below else value
    return dataclasses.replace(config, **{name: inner})
