"""Fields of a configuration as rows of a form, and what is typed into them as flags of the command line."""

from __future__ import annotations

import dataclasses
import shlex
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, cast

from lowcomm.flags.assign import part_hint
from lowcomm.flags.parts import bases, fields_of, is_part_field, known
from lowcomm.flags.write import written
from lowcomm.types import ConfigError
from lowcomm.ui.field_docs import class_doc, field_docs

Kind = Literal["switch", "choice", "number", "text", "words", "part"]

HIDDEN = frozenset({"run_dir", "resume", "store"})
"""Set by the pages themselves: a run lies under the directory of runs, by its name. Stores are for a terminal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One field."""

    path: str
    """As a flag without its dashes, with underscores: sync.outer.lr"""
    kind: Kind
    value: str
    """As a flag takes it; of a part its spec."""
    doc: str
    """Meaning, unit and range."""
    depth: int = 0
    """Of parts around it."""
    choices: tuple[str, ...] = ()
    """Of a choice its values, of a part the names of the classes that may stand there."""
    chosen: str = ""
    """Of a part the name of its class."""
    chosen_doc: str = ""

    @property
    def section(self) -> str:
        """The first name of the path; "" for a field of the run itself."""
        return self.path.partition(".")[0] if "." in self.path else ""


def rows_of(config: object, prefix: str = "", depth: int = 0) -> Iterator[Row]:
    """All fields in their order; those of a part follow the row of the part."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    hints, docs = typing.get_type_hints(type(config)), field_docs(type(config))
    for field in dataclasses.fields(config):
        path, value, hint = f"{prefix}{field.name}", getattr(config, field.name), hints[field.name]
        if not field.init or path in HIDDEN:
            continue
        inside = dataclasses.is_dataclass(value) and not isinstance(value, type)
        if is_part_field(hint):
            yield _part(path, hint, value, docs.get(field.name, ""), depth)
            if inside:
                yield from rows_of(value, f"{path}.", depth + 1)
        elif inside:
            yield from rows_of(value, f"{path}.", depth)
        else:
            yield _leaf(path, hint, value, docs.get(field.name, ""), depth)


def _part(path: str, hint: Any, value: object, doc: str, depth: int) -> Row:
    names = sorted({n for base in bases(hint) for n in known(base)}, key=str.lower) if _single(hint) else []
    optional = type(None) in typing.get_args(hint)
    plain = value is None or isinstance(value, (tuple, list, dict, str, int, float))
    chosen = ("None" if value is None else "") if plain else type(value).__name__
    return Row(
        path=path, kind="part", value=written(value), doc=doc, depth=depth,
        choices=(*names, *(["None"] if optional else [])), chosen=chosen,
        chosen_doc="" if plain else class_doc(type(value)),
    )  # fmt: skip


def _single(hint: Any) -> bool:
    """Whether a field holds one part, rather than several or a table of them."""
    return all(h is type(None) or (isinstance(h, type) and typing.get_origin(h) is None) for h in _options(hint))


def _leaf(path: str, hint: Any, value: object, doc: str, depth: int) -> Row:
    kind, choices = _kind(hint)
    return Row(path=path, kind=kind, value=_shown(value), doc=doc, depth=depth, choices=choices)


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _kind(hint: Any) -> tuple[Kind, tuple[str, ...]]:
    options = _options(hint)
    none = ("None",) if type(None) in options else ()
    real = [h for h in options if h is not type(None)]
    if real == [bool]:
        return ("choice", ("True", "False", *none)) if none else ("switch", ())
    if len(real) == 1 and typing.get_origin(real[0]) is Literal:
        return "choice", (*map(str, typing.get_args(real[0])), *none)
    if real and set(real) <= {int, float}:
        return "number", ()
    return ("text", ()) if real and set(real) <= {str, Path, int, float} else ("words", ())


def _shown(value: object) -> str:
    """As words of a command line: texts as they are, tables and lists in words with quotes where they need them."""
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return " ".join(shlex.quote(str(word)) for pair in pairs for word in pair)
    if isinstance(value, (tuple, list)):
        return " ".join(shlex.quote(str(word)) for word in cast("Sequence[object]", value))
    return str(value)


def flag(row: Row, text: str) -> list[str]:
    """The words of the command line that give a field this value. Raises ConfigError for what can't be one."""
    name = row.path.replace("_", "-")
    if row.kind == "switch":
        above, dot, last = name.rpartition(".")
        if text not in ("True", "False"):
            raise ConfigError(f"{row.path} = {text!r} is not allowed: True or False. Fix: give one of these")
        return [f"--{name}" if text == "True" else f"--{above}{dot}no-{last}"]
    if row.kind == "words":
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"{row.path} = {text!r} is not allowed: {error}. Fix: close the quotes") from error
        if not words or any(word.startswith("-") and not _is_number(word) for word in words):
            raise ConfigError(f"{row.path} = {text!r} is not allowed: words without dashes. Fix: give one or more")
        return [f"--{name}", *words]
    if "\n" in text or "\0" in text:
        raise ConfigError(f"{row.path} = {text!r} is not allowed: one line. Fix: leave the line break out")
    return [f"--{name}={text}"] if text.startswith("-") or not text else [f"--{name}", text]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def sample(config: object, path: str, name: str) -> str:
    """A spec of the class `name` for the part at `path`: what it requires is filled with parts that require nothing."""
    hint = part_hint(config, path.split("."))
    classes = {n: c for base in bases(hint) for n, c in known(base).items()} if hint is not None else {}
    return _sample(classes[name]) if name in classes else name


def _sample(cls: type, depth: int = 0) -> str:
    hints, given = typing.get_type_hints(cls), list[str]()
    for field in fields_of(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and is_part_field(hints[field.name]) and depth < 3:
            choices = [c for base in bases(hints[field.name]) for c in known(base).values() if c is not cls]
            easy = [c for c in choices if not any(_required(f) for f in fields_of(c))]
            best = next((c for c in easy if c.__name__ == "Int4"), next(iter(easy or choices), None))
            given += [f"{field.name}={_sample(best, depth + 1)}"] if best is not None else []
    return f"{cls.__name__}({', '.join(given)})"


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
