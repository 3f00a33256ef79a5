"""Reading of a part as it is written in a flag: `ErrorFeedback(codec=TopK(k=32))`, `TopK() | Zstd()`, `Int4`.

It is Python's notation, of which only calls with named arguments, `|`, literals, tuples, lists and dicts are taken.
Nothing is looked up and nothing runs here.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass

from lowcomm.types import ConfigError

LONGEST = 10_000
"""Characters."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """`name(field=value, ...)`."""

    name: str
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piped:
    """`first | then`."""

    first: object
    then: object


def parse(text: str, flag: str) -> object:
    """A Call, a Piped, or a literal that may hold them. Raises ConfigError. flag: the field's path, for messages."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is a pattern
            tree = ast.parse(text.strip()[: LONGEST + 1], mode="eval")
        if len(text) > LONGEST:
            raise ValueError(f"{len(text)} characters, of {LONGEST} at most")
        return _read(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ConfigError(
            f"{flag} = {text[:80]!r} is not allowed: it does not read as NAME(FIELD=VALUE, ...): {why}. "
            f"Fix: write it in quotes, as in --{flag} 'NAME(FIELD=1)'; texts inside in quotes of their own"
        ) from error


def _read(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (bool, int, float, str)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if value is not True:
            return -value
        case ast.Name(id=name):
            return Call(name=name)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=words) if all(w.arg for w in words):
            return Call(name=name, fields=tuple((str(w.arg), _read(w.value)) for w in words))
        case ast.Call(func=ast.Name(id=name), args=[_, *_]):
            raise ValueError(f"{name} takes named fields only, as in {name}(FIELD=VALUE)")
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Piped(first=_read(left), then=_read(right))
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_read(item) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_key(key): _read(value) for key, value in zip(keys, values, strict=True)}
        case _:
            raise ValueError(f"{ast.unparse(node)[:60]!r} is none of a name, a call, a number, a text or a list")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("a key is no text")
