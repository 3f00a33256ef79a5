"""The page of all methods: what each file says of itself, the recipes that use it, and the rows of the measured tables.

The list is tests/methods.py. A method whose recipe or row is gone fails the build.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import benchmarks.codecs_report
import benchmarks.headline_summary
import benchmarks.tables
from lowcomm.recipe import load, packaged
from tests import methods

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
QUALITY = {
    "EveryH": ("DiLoCo H=16", "DiLoCo H=32", "DiLoCo H=64"),
    "EveryStep": ("DDP",),
    "PostLocal": ("DDP warm-up, DiLoCo H=32",),
    "Nesterov": ("DiLoCo H=16", "DiLoCo H=32", "DiLoCo H=64"),
    "Mean": ("DiLoCo H=32",),
    "Fp32": ("DiLoCo H=32",),
}
"""Rows of quality_nano.json by class; codecs find theirs in codecs.json by the name of their recipe."""
HEADLINE = {
    "Streaming": "lowcomm int4 streaming, overlap",
    "OneStepDelay": "lowcomm two-bit, one-step delay",
}
"""Rows of the comparison on slow links by class."""
MOST_RECIPES = 8


def methods_section(group: str) -> str:
    """Markdown of one tuple of tests/methods.py: a section per class, in its order."""
    return "\n\n".join(_section(cls) for cls in _classes(getattr(methods, group)))


def _classes(instances: tuple[object, ...]) -> list[type]:
    """Every class of the tuple, and of what they wrap, once."""
    found = dict.fromkeys(type(part) for instance in instances for part in _parts(instance))
    kinds = tuple({base for one in instances for base in type(one).__mro__ if inspect.isabstract(base)}) or (object,)
    return [cls for cls in found if issubclass(cls, kinds)]


def _parts(value: object) -> Iterator[object]:
    """A dataclass instance and the instances in its fields, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)


def _section(cls: type) -> str:
    module = inspect.getmodule(cls)
    assert module is not None and module.__doc__, f"{cls} has no module with a docstring"
    path = module.__name__.replace(".", "/") + ".py"
    text = [f"### {cls.__name__}", f"`{path}`", _prose(module.__doc__)]
    recipes = _recipes(cls)
    shown = ", ".join(f"`{name}`" for name in recipes[:MOST_RECIPES])
    more = f" and {len(recipes) - MOST_RECIPES} more" if len(recipes) > MOST_RECIPES else ""
    text.append(f"**Recipe.** {shown}{more}." if recipes else "**Recipe.** None yet: pass it in a recipe of your own.")
    text.append(_results(cls, recipes))
    return "\n\n".join(text)


def _prose(docstring: str) -> str:
    """The docstring as Markdown: equations stay indented, `Cost:` and the like become bold, papers are linked."""
    lines: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if line.startswith("    "):
            lines.append(line)
            continue
        head = re.match(r"([A-Z][a-z]+(?: [a-z]+)?): ", line)
        if head:
            lines += ["", f"**{head[1]}.** {_escaped(line[head.end() :])}"]
        else:
            lines.append(_escaped(line))
    return re.sub(r"arXiv:? ?(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", "\n".join(lines))


def _escaped(line: str) -> str:
    """Without Markdown of its own, outside backticks."""
    parts = line.split("`")
    return "`".join(part if i % 2 else re.sub(r"([*_\[\]<>|])", r"\\\1", part) for i, part in enumerate(parts))


@cache
def _configurations() -> dict[str, tuple[object, ...]]:
    return {info.name: tuple(_parts(load(info.name))) for info in packaged()}


def _recipes(cls: type) -> list[str]:
    return [name for name, parts in _configurations().items() if any(type(part) is cls for part in parts)]


def _results(cls: type, recipes: list[str]) -> str:
    """Rows of the committed tables that this class took part in."""
    found: list[str] = []
    codec_rows = [name.split(":")[1] for name in recipes if name.startswith("compressed.py:")]
    if cls.__module__.startswith("lowcomm.codec") and codec_rows:
        found.append(_rows("codecs.json", benchmarks.codecs_report.codecs_table(_load("codecs")), codec_rows, False))
    if cls.__name__ in QUALITY:
        table = benchmarks.tables.quality_table(_load("quality_nano"))
        found.append(_rows("quality_nano.json", table, QUALITY[cls.__name__], True))
    if cls.__name__ in HEADLINE:
        table = benchmarks.headline_summary.headline_summary(_load("headline"))
        found.append(_rows("headline.json", table, (HEADLINE[cls.__name__],), True))
    found += [_same_bits(recipes)] if not any(found) else []
    text = "\n\n".join(part for part in found if part)
    return text or "**Result.** None committed yet."


def _load(name: str) -> dict[str, object]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _rows(name: str, table: str, wanted: tuple[str, ...] | list[str], all_there: bool) -> str:
    """Head and rows of a Markdown table whose first cell is one of `wanted` (or starts with it and a space)."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = {line: line.split("|")[1].strip() for line in lines[2:]}
    rows = [line for line, cell in cells.items() if any(cell == w or cell.startswith(f"{w} ") for w in wanted)]
    if all_there:
        rows = [line for line, cell in cells.items() if cell in wanted]
        missing = set(wanted) - set(cells.values())
        assert not missing, f"{name} has no row {missing}: correct docs/method_pages.py"
    return f"**Result**, `benchmarks/results/{name}`.\n\n" + "\n".join([*lines[:2], *rows]) if rows else ""


def _same_bits(recipes: list[str]) -> str:
    """What every recipe is checked for: real processes give the bits and bytes of the simulation."""
    rows = [row for row in _load("same_bits")["rows"] if row["recipe"] in recipes]  # type: ignore[union-attr, index]
    if not rows:
        return ""
    equal = sum(row["same_weights"] and row["same_bytes"] for row in rows)
    return (
        f"**Result.** No table of losses yet; {equal} of {len(rows)} recipes with it gave the weights and bytes of the "
        "simulation as real processes (`benchmarks/results/same_bits.json`)."
    )
