"""Fields of configuration classes, read from lowcomm's own source: importing them would import torch, for seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A dataclass as its file has it; there is one object of each."""

    name: str
    file: Path
    fields: dict[str, str] = field(default_factory=dict)
    """Annotations by name, those of base classes included."""
    abstract: bool = False


@cache
def section(name: str, file: Path) -> Section | None:
    """The class of that name in a module of lowcomm, wherever the module has it from; None: it is none of lowcomm's."""
    module = _module(file)
    if name in module.classes:
        node = module.classes[name]
        bases = [ast.unparse(base).split("[")[0] for base in node.bases]
        above = [found for base in bases if (found := section(base, file)) is not None]
        fields = {k: v for found in above for k, v in found.fields.items()} | _own_fields(node)
        return Section(name=name, file=file, fields=fields, abstract="ABC" in bases)
    source = module.imports.get(name)
    return None if source is None else section(name, source)


@cache
def leaf_sections(annotation: str, file: Path) -> list[Section]:
    """The classes of lowcomm that an annotation names."""
    names = [node.id for node in ast.walk(ast.parse(annotation, mode="eval")) if isinstance(node, ast.Name)]
    return [found for name in names if (found := section(name, file)) is not None]


@cache
def below(base: Section) -> list[Section]:
    """Classes that derive from one: in the same stage, or in modules that lie above all stages."""
    where = _near(base)
    parents = {n: [ast.unparse(b) for b in _module(f).classes[n].bases] for n, f in where.items()}
    known, grew = {base.name}, True
    while grew:
        more = {n for n, above in parents.items() if known & set(above)} - known
        known, grew = known | more, bool(more)
    return [s for n in sorted(known - {base.name}) if (s := section(n, where[n])) is not None]


@cache
def names_near(base: Section) -> set[str]:
    """All classes of a stage, parts or not: what is not among them is certainly no part."""
    return {base.name, *_near(base)}


@cache
def exported(base: Section) -> list[str]:
    """Names of the parts that the stage of a class exports; of all below it, where the stage exports nothing."""
    init = _stage(base) / "__init__.py"
    lists = [
        ast.literal_eval(node.value)
        for node in (ast.parse(init.read_text(encoding="utf-8")).body if init.is_file() else ())
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    names = [s.name for s in below(base) if not s.abstract]
    return [n for n in names if not lists or n in lists[0] or _near(base)[n].parent == ROOT]


def _stage(base: Section) -> Path:
    return ROOT / base.file.relative_to(ROOT).parts[0]


def _near(base: Section) -> dict[str, Path]:
    """Files of the classes of a stage and of those that lie above all."""
    files = [*sorted(ROOT.glob("*.py")), *sorted(_stage(base).rglob("*.py"))]
    return {name: file for file in files for name in _module(file).classes}


@dataclass(frozen=True, kw_only=True)
class _Module:
    classes: dict[str, ast.ClassDef]
    imports: dict[str, Path]
    """Files of lowcomm that names come from."""


@cache
def _module(file: Path) -> _Module:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    imports = {name: path for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name, path in _from(node)}
    return _Module(classes=classes, imports=imports)


def _from(node: ast.ImportFrom) -> Iterator[tuple[str, Path]]:
    parts = (node.module or "").split(".")
    if node.level or parts[0] != "lowcomm":
        return
    place = ROOT.joinpath(*parts[1:])
    file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    if file.is_file():
        for alias in node.names:
            yield alias.asname or alias.name, file


def _own_fields(node: ast.ClassDef) -> dict[str, str]:
    return {
        item.target.id: ast.unparse(item.annotation)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not ast.unparse(item.annotation).startswith("ClassVar")
    }
