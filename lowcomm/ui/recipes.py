"""Recipes that a page offers: the packaged ones, and those of the directory that the server was started in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from lowcomm.recipe import RecipeInfo, packaged, packaged_directory
from lowcomm.types import ConfigError

PLACES = (Path(), Path("recipes"))
LARGEST_BYTES = 1_000_000
"""Of a file that is looked into."""


def offered() -> list[RecipeInfo]:
    """Own recipes first. Only listed ones are ever loaded: loading a recipe runs its file."""
    own = [info for place in PLACES for info in _own(place)]
    shadowed = {info.name.partition(":")[0] for info in own}  # `lowcomm train` would take the file that is here
    return [*own, *(info for info in packaged() if info.name.partition(":")[0] not in shadowed)]


def check_offered(reference: str) -> None:
    """Raise ConfigError for a recipe that is not in the list."""
    if reference not in {info.name for info in offered()}:
        raise ConfigError(
            f"recipe = {reference[:80]!r} is not allowed: one of those listed. Fix: choose it in the list"
        )


def _own(place: Path) -> Iterator[RecipeInfo]:
    """Functions that say that they return a RunConfig, in files beside which the server was started."""
    for path in sorted(place.glob("*.py")):
        if path.resolve().parent == packaged_directory().resolve() or path.name.startswith("_"):
            continue
        for name, summary in _functions(path):
            yield RecipeInfo(name=f"{path}:{name}", summary=summary)


def _functions(path: Path) -> list[tuple[str, str]]:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            return []
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    return [
        (node.name, (ast.get_docstring(node) or "").split("\n")[0])
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and not node.args.args
        and node.returns is not None
        and "RunConfig" in ast.unparse(node.returns)
    ]
