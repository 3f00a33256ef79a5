"""Canonical JSON: the only form in which anything but tensors lies in a store.

Sorted keys, no spaces, ASCII, no NaN or infinity; a text that is not written so is refused, so that equal values have
equal bytes. Every reading says what it expects and raises PayloadError for the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lowcomm.types import PayloadError

MOST_BYTES, MOST_DEPTH = 1 << 20, 8
MOST_WHOLE = 2**63 - 1
SHA256 = re.compile(r"[0-9a-f]{64}")
INCARNATION = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"[a-z0-9-]{1,40}")


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def write(value: object, most_bytes: int = MOST_BYTES) -> bytes:
    """The one text of a JSON value. Raises PayloadError for what has none, is too long or too deep."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"a value has no canonical text: {error}") from error
    if len(text) > most_bytes:
        raise PayloadError(f"a text of {len(text)} bytes: {most_bytes} are allowed")
    if _too_deep(value, MOST_DEPTH):
        raise PayloadError(f"a text that nests deeper than {MOST_DEPTH}")
    return text


def read(data: bytes, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a canonical text. Raises PayloadError for any other bytes."""
    if len(data) > most_bytes:
        raise PayloadError(f"a text of {len(data)} bytes: {most_bytes} are allowed")
    try:
        value = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"no JSON: {str(error)[:100]}") from error
    if write(value, most_bytes) != data:
        raise PayloadError("JSON, but not in its canonical form")
    return value


def fields(value: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """The object itself if it has exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(names):
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise PayloadError(f"{what} has {str(found)[:200]}, expected the fields {sorted(names)}")
    return value


def whole(values: Mapping[str, Any], name: str, least: int = 0, most: int = MOST_WHOLE) -> int:
    """An integer in its range."""
    value = values[name]
    if type(value) is not int or not least <= value <= most:
        raise PayloadError(f"{name} = {str(value)[:100]!r}: expected a whole number from {least} to {most}")
    return value


def number(values: Mapping[str, Any], name: str, least: float = 0.0) -> float:
    """A finite number, not below `least`."""
    value = values[name]
    known = type(value) is float or (type(value) is int and abs(value) <= MOST_WHOLE)
    if not known or not math.isfinite(value) or value < least:
        raise PayloadError(f"{name} = {str(value)[:100]!r}: expected a finite number, {least:g} or more")
    return float(value)


def flag(values: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    if not isinstance(values[name], bool):
        raise PayloadError(f"{name} = {str(values[name])[:100]!r}: expected true or false")
    return values[name]


def string(values: Mapping[str, Any], name: str, form: re.Pattern[str] | None = None, most: int = 1000) -> str:
    """A text of this form."""
    value = values[name]
    if not isinstance(value, str) or len(value) > most or (form is not None and form.fullmatch(value) is None):
        legal = f"text of at most {most} characters" if form is None else f"text like {form.pattern}"
        raise PayloadError(f"{name} = {str(value)[:100]!r}: expected {legal}")
    return value


def rows(values: Mapping[str, Any], name: str, most: int = 100_000) -> list[Any]:
    """A list of limited length."""
    value = values[name]
    if not isinstance(value, list) or len(value) > most:
        raise PayloadError(f"{name} = {str(value)[:100]!r}: expected a list of at most {most}")
    return value


def _too_deep(value: object, left: int) -> bool:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else None
    return inner is not None and (left == 0 or any(_too_deep(v, left - 1) for v in inner))
