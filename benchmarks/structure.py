"""What the code of the package says about its own shape: import circles, and functions that take a whole object.

Everything is read from the sources under a root, so that another commit's tree is measured by the same rules. Imports
at the top of a file count, those that only type checkers read too: they do not run, but tie files all the same. An
import inside a function does not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]
"""Imported modules of the package, by module; dotted names."""


def sources(root: Path) -> dict[str, Path]:
    """The package's files by dotted module name."""
    found: dict[str, Path] = {}
    for path in sorted((root / "lowcomm").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _top_level(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run, or that a type checker reads, when the module is loaded."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            yield from _top_level(node.body)
            yield from _top_level([*getattr(node, "orelse", []), *getattr(node, "finalbody", [])])
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def ties(module: str, path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports; `from a import b` ties to a.b where that is a module, else to a."""
    found: set[str] = set()
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in _top_level(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        above = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*above, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            full = f"{source}.{alias.name}"
            found.add(full if full in modules else source)
    return (found & modules) - {module}


def graph(root: Path) -> Graph:
    """The ties of every file."""
    files = sources(root)
    return {module: ties(module, path, set(files)) for module, path in files.items()}


def circles(tied: Graph) -> list[list[str]]:
    """Sets of modules that import each other, directly or by others; the largest first."""
    reach = {module: _reached(module, tied) for module in tied}
    left, found = set(tied), list[list[str]]()
    for module in sorted(tied):
        circle = sorted(other for other in reach[module] if module in reach[other])
        if module in left and len(circle) > 1:
            found.append(circle)
            left -= set(circle)
    return sorted(found, key=len, reverse=True)


def _reached(start: str, tied: Graph) -> set[str]:
    """Modules that an import of `start` leads to; itself only if it leads back."""
    seen: set[str] = set()
    ahead = list(tied[start])
    while ahead:
        module = ahead.pop()
        if module not in seen:
            seen.add(module)
            ahead += tied[module]
    return seen


def takers(root: Path, name: str) -> list[str]:
    """`file:line function` of every function with an argument annotated with the class `name`."""
    found: list[str] = []
    for path in sources(root).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                if any(a.annotation is not None and _names(a.annotation, name) for a in given):
                    found.append(f"{path.relative_to(root)}:{node.lineno} {node.name}")
    return found


def _names(annotation: ast.expr, name: str) -> bool:
    """Whether the class stands in an annotation, quoted ones included."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if _names(ast.parse(node.value, mode="eval").body, name):
                return True
        elif (isinstance(node, ast.Name) and node.id == name) or (
            isinstance(node, ast.Attribute) and node.attr == name
        ):
            return True
    return False
