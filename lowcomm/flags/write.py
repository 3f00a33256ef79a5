"""Writing of a part as a flag takes it: the other way round than `lowcomm.flags.spec`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast


def written(value: object) -> str:
    """`Nesterov(lr=0.7)`: the fields that differ from their defaults. What flags do not take is shown by its repr."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = [f"{f.name}={written(getattr(value, f.name))}" for f in dataclasses.fields(value) if _differs(value, f)]
        return f"{type(value).__name__}({', '.join(given)})"
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return "{" + ", ".join(f"{key!r}: {written(item)}" for key, item in pairs) + "}"
    if isinstance(value, (tuple, list)):
        items = [written(item) for item in cast("Sequence[object]", value)]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    return repr(value)


def _differs(value: object, field: dataclasses.Field[Any]) -> bool:
    """Whether a field has to be written: it has no default, or another value."""
    if not field.init:
        return False
    if field.default is not dataclasses.MISSING:
        return getattr(value, field.name) != field.default
    if field.default_factory is not dataclasses.MISSING:
        return getattr(value, field.name) != field.default_factory()
    return True
