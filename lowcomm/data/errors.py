"""One-line errors of the data layer, and imports of optional libraries."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from lowcomm.types import ConfigError


def bad(field: str, value: object, legal: str, fix: str) -> ConfigError:
    """The error for `field` of the data settings: names the value, what is legal and what to do."""
    return ConfigError(f"data.{field} is {value!r}; legal: {legal}; fix: {one_line(fix)}")


def one_line(text: object) -> str:
    """Other libraries' messages come with line breaks; ours are one line."""
    return " ".join(str(text).split())


def need(module: str, extra: str) -> ModuleType:
    """Import an optional library; raises ConfigError with the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{module} cannot be imported ({one_line(error)}); fix: pip install 'lowcomm[{extra}]'"
        ) from error
