"""Conflicts: parts that do not go together, told in one line with the fix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lowcomm.types import ConfigError


@dataclass(frozen=True)
class Conflict:
    """`field = value` that does not go with `other` (maybe nothing in particular)."""

    field: str
    value: object
    other: str
    why: str
    fix: str

    def __str__(self) -> str:
        value = "" if self.value is None else f" = {self.value}"
        other = f" with {self.other}" if self.other else ""
        return f"{self.field}{value} is not allowed{other}: {self.why}. Fix: {self.fix}"


def refuse(found: Iterator[Conflict]) -> None:
    """Raise ConfigError for the first."""
    for conflict in found:
        raise ConfigError(str(conflict))
