"""Docstrings of dataclasses and of their fields, read from their source."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from functools import cache


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The text below each field, on one line; fields of base classes included. Empty where there is no source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = _body(base)
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                value = below.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = " ".join(value.value.split())
    return found


@cache
def class_doc(cls: type) -> str:
    """The first line of a class's docstring, or of its module's where it has none of its own."""
    own = vars(cls).get("__doc__") or ""
    if own.startswith(f"{cls.__name__}("):  # what dataclasses make up
        own = ""
    module = inspect.getmodule(cls)
    return (own or (module.__doc__ if module is not None else "") or "").strip().split("\n")[0]


def _body(cls: type) -> list[ast.stmt]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return []
    node = tree.body[0]
    return node.body if isinstance(node, ast.ClassDef) else []
