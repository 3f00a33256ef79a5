"""Finding and loading recipes: `FILE.py:FUNCTION`, a function without arguments that returns a RunConfig."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from lowcomm.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class RecipeInfo:
    """One function of one packaged recipe."""

    name: str
    """FILE.py:FUNCTION"""
    summary: str


def packaged_directory() -> Path:
    """Where the recipes that came with the package lie."""
    spec = importlib.util.find_spec("lowcomm_recipes")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parent.parent / "recipes"


def load(reference: str) -> RunConfig:
    """The configuration of `FILE.py:FUNCTION`; a file that isn't there is looked for among the packaged recipes."""
    path, function_name = find(reference)
    from lowcomm.config import RunConfig

    module = _module(path)
    function: Callable[[], object] | None = getattr(module, function_name, None)
    if not inspect.isfunction(function) or function_name.startswith("_"):
        known = ", ".join(n for n, _ in _functions(path)) or "none"
        raise ConfigError(f"recipe {path} has no function {function_name!r}. Fix: use one of {known}")
    try:
        config = function()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"recipe {reference} failed: {type(error).__name__}: {error}. Fix: correct it") from error
    if not isinstance(config, RunConfig):
        raise ConfigError(f"recipe {reference} returned {type(config).__name__}. Fix: return a RunConfig")
    return config


def class_of_packaged(stem: str, name: str) -> object:
    """What a packaged recipe file calls `name`; None where there is no such file, or nothing of its own."""
    path = packaged_directory() / f"{stem}.py"
    if path.stem != stem or not path.is_file():
        return None
    known = sys.modules.get(_module_name(path))
    module = known if known is not None and getattr(known, "__file__", None) == str(path) else _module(path)
    found = getattr(module, name, None)
    return found if getattr(found, "__module__", None) == _module_name(path) else None


def find(reference: str) -> tuple[Path, str]:
    """The file and the function that a reference names; runs nothing. Raises ConfigError where there is no file."""
    path_text, separator, function_name = reference.rpartition(":")
    if not separator:
        path_text, function_name = reference, "smoke"
    path = _find(path_text)
    if path.suffix != ".py":
        raise ConfigError(f"recipe file {path_text!r} is not a Python file. Fix: give FILE.py:FUNCTION")
    return path, function_name


def packaged() -> list[RecipeInfo]:
    """All functions of the packaged recipes, with the first line of their docstrings. Imports nothing."""
    return [
        RecipeInfo(name=f"{path.name}:{name}", summary=summary)
        for path in sorted(packaged_directory().glob("*.py"))
        if not path.name.startswith("_")
        for name, summary in _functions(path)
    ]


def copy(name: str, directory: Path) -> Path:
    """Copy a packaged recipe file into `directory` to edit it. Never overwrites."""
    source = packaged_directory() / (name.split(":")[0].removesuffix(".py") + ".py")
    if not source.is_file():
        known = ", ".join(sorted({i.name.split(".py")[0] for i in packaged()}))
        raise ConfigError(f"there is no recipe {name!r}. Fix: use one of {known}")
    target = directory / source.name
    if target.exists():
        raise ConfigError(f"{target} exists already. Fix: move it away first")
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return target


def _module_name(path: Path) -> str:
    return f"lowcomm_recipe_{path.stem}"


def _module(path: Path) -> ModuleType:
    """A recipe file, run."""
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:  # it is a user's code: anything may happen in it
        raise ConfigError(f"recipe {path} does not load: {type(error).__name__}: {error}. Fix: correct it") from error
    return module


def _find(path_text: str) -> Path:
    path = Path(path_text)
    if path.is_file():
        return path
    packaged_path = packaged_directory() / path.name
    if path.parent in (Path(), Path("recipes")) and packaged_path.is_file():
        return packaged_path
    raise ConfigError(f"recipe file {path_text!r} is neither here nor packaged. Fix: see `lowcomm recipes`")


def _functions(path: Path) -> list[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, str]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not node.args.args:
            found.append((node.name, (ast.get_docstring(node) or "").split("\n")[0]))
    return found
