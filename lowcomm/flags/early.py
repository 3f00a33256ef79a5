"""Refusal of flags that no configuration has, before torch is imported: a slip of the fingers costs no seconds.

What passes here may still be refused by `parse_flags`, which knows the recipe's own values.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowcomm.flags.source import ROOT, Section, below, exported, leaf_sections, names_near, section
from lowcomm.flags.spec import Call, parse
from lowcomm.types import ConfigError


def refuse_early(recipe: Path, arguments: Sequence[str]) -> None:
    """Raise ConfigError for a flag or a value that can't be one. A recipe with classes of its own is left alone."""
    if _has_own_classes(recipe):
        return
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "-h":
            return
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} is no flag. Fix: write --NAME VALUE; --help lists the names")
        flag, equals, value = word[2:].partition("=")
        if flag == "help":
            return
        annotation, parts = _annotation(flag)
        if equals:
            _check_value(flag, annotation, parts, [value])
            continue
        values: list[str] = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        _check_value(flag, annotation, parts, values)


def _annotation(flag: str) -> tuple[str, tuple[Section, ...]]:
    """Of the field that a flag sets, with the classes of parts that it takes.

    Two parts may have fields of one name that take different values: what either takes.
    """
    path = plain_path(flag)
    places = [_root()]
    for depth, name in enumerate(path):
        found = [(s, s.fields[name]) for s in places if name in s.fields]
        if not found:
            raise ConfigError(unknown_flag(flag))
        if depth == len(path) - 1:
            parts = [s for holder, a in found for s in leaf_sections(a, holder.file) if s.abstract or "None" in a]
            return " | ".join(dict.fromkeys(a for _, a in found)), tuple(dict.fromkeys(parts))
        inside = [s for holder, annotation in found for s in leaf_sections(annotation, holder.file)]
        places = [p for s in inside for p in (s, *(below(s) if depth else ()))]  # the first are sections, never parts
    raise ConfigError(unknown_flag(flag))


def literals(path: str) -> list[str]:
    """The values that a field of the configuration may have, where they are listed."""
    return _choices(_annotation(path)[0]) or []


def plain_path(flag: str) -> list[str]:
    """`checkpoint.no-export` or `no-checkpoint.export`: the field's own path, with underscores."""
    path = flag.replace("-", "_").split(".")
    return [name.removeprefix("no_") if i in (0, len(path) - 1) else name for i, name in enumerate(path)]


def unknown_flag(flag: str) -> str:
    """The message with what is nearest among all flags, by the whole name or by its end."""
    flags = list(_flags(_root(), ""))
    wanted, last = ".".join(plain_path(flag)), plain_path(flag)[-1]
    ends = [f for f in flags if f.rpartition(".")[2] == last]
    near = ends or difflib.get_close_matches(wanted, flags, n=2) or _in_parts(last) or _by_end(last, flags)
    fix = " or ".join(f"--{f.replace('_', '-')}" for f in near[:2]) or "--help lists them all"
    return f"--{flag} is not a flag. Fix: {fix}"


def _in_parts(last: str) -> list[str]:
    """Fields of that name that a part may have."""
    return [
        f"{name}.{last}"
        for name, holder, annotation in _annotated(_root(), "")
        for part in leaf_sections(annotation, holder.file)[:1]
        if any(last in s.fields for s in below(part))
    ]


def _by_end(last: str, flags: Sequence[str]) -> list[str]:
    ends = {f.rpartition(".")[2]: f for f in flags}
    return [ends[e] for e in difflib.get_close_matches(last, list(ends), n=2)]


def _flags(place: Section, prefix: str) -> Iterator[str]:
    for name, _, _ in _annotated(place, prefix):
        yield name


def _annotated(place: Section, prefix: str) -> Iterator[tuple[str, Section, str]]:
    """Every field of the configuration's sections: name, class, annotation; parts by their own name only."""
    for name, annotation in place.fields.items():
        inside = leaf_sections(annotation, place.file)
        sections = [s for s in inside if not s.abstract and "None" not in annotation]
        if not sections:
            yield f"{prefix}{name}", place, annotation
        for found in sections:
            yield from _annotated(found, f"{prefix}{name}.")


def _root() -> Section:
    found = section("RunConfig", ROOT / "config.py")
    assert found is not None
    return found


def _check_value(flag: str, annotation: str, parts: Sequence[Section], values: Sequence[str]) -> None:
    if parts:
        _check_part(flag, parts, values)
        return
    legal, negated = _choices(annotation), plain_path(flag) != flag.replace("-", "_").split(".")
    if negated and (values or "bool" not in (legal or ("bool",))):
        raise ConfigError(f"--{flag} is not allowed: it switches something off. Fix: --{'.'.join(plain_path(flag))}")
    if legal is None or negated or (not values and flag == "resume"):
        return
    if annotation == "bool":
        if values:
            raise ConfigError(f"--{flag} takes no value, not {values[0]!r}. Fix: --{flag}, or {_off(flag)} for off")
        return
    if len(values) != 1:
        what = "no value" if not values else f"{len(values)} values ({' '.join(values)})"
        raise ConfigError(f"--{flag} has {what}: one is wanted, {_said(legal)}. Fix: --{flag} VALUE")
    if not any(_fits(values[0], kind) for kind in legal):
        fix = "give one of these" if " or " in _said(legal) else f"give {_said(legal)}"
        raise ConfigError(f"--{flag} = {values[0]!r} is not allowed: {_said(legal)}. Fix: {fix}")


def _off(flag: str) -> str:
    above, _, last = flag.rpartition(".")
    return f"--{above}.no-{last}" if above else f"--no-{last}"


def _check_part(flag: str, parts: Sequence[Section], values: Sequence[str]) -> None:
    name, names = ".".join(plain_path(flag)), [n for part in parts for n in exported(part) or [part.name]]
    if len(values) != 1:
        raise ConfigError(f"--{name} wants a part: one of {', '.join(names)}. Fix: --{name} '{names[0]}()', in quotes")
    spec = parse(values[0], name)
    if not isinstance(spec, Call):
        return
    plain = spec.name.replace("_", "").lower()
    if plain not in {n.lower() for part in parts for n in names_near(part)} and plain != "none":
        near = difflib.get_close_matches(plain, [n.lower() for n in names], n=1)
        fix = f"write {next(n for n in names if n.lower() == near[0])}" if near else "use one of these"
        raise ConfigError(f"{name} = {spec.name!r} is not allowed: one of {', '.join(names)}. Fix: {fix}")


def _choices(annotation: str) -> list[str] | None:
    """What an annotation takes: names of plain types and values of literals; None where it says something else."""
    found: list[str] = []
    pending = [ast.parse(annotation, mode="eval").body]
    while pending:
        node = pending.pop(0)
        match node:
            case ast.BinOp(left=left, right=right):
                pending += [left, right]
            case ast.Name(id="int" | "float" | "str" | "Path" | "bool" as name):
                found.append(name)
            case ast.Constant(value=None):
                found.append("None")
            case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
                items = choices.elts if isinstance(choices, ast.Tuple) else [choices]
                found += [str(item.value) for item in items if isinstance(item, ast.Constant)]
            case _:
                return None
    return found


def _fits(text: str, kind: str) -> bool:
    try:
        if kind in ("int", "float"):
            {"int": int, "float": float}[kind](text)
            return True
    except ValueError:
        return False
    return kind in ("str", "Path") or text == kind or (kind == "bool" and text in ("True", "False"))


def _said(legal: Sequence[str]) -> str:
    words = {"int": "a whole number", "float": "a number", "str": "a text", "Path": "a path", "bool": "True or False"}
    return " or ".join(words.get(kind, kind) for kind in legal)


def _has_own_classes(recipe: Path) -> bool:
    """Whether a recipe has, or may import, classes that lowcomm does not have."""
    try:
        tree = ast.parse(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return True  # what is wrong with it is said when it is loaded
    modules = [n.module or "." for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    ours = {"lowcomm", "lowcomm_recipes", "torch", *sys.stdlib_module_names}
    own = any(isinstance(n, ast.ClassDef) for n in ast.walk(tree))
    return own or any(module.split(".")[0] not in ours for module in modules)
