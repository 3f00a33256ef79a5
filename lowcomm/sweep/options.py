"""Flags of `lowcomm sweep`, read before torch is imported."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lowcomm.types import ConfigError

OWN_FLAGS = {
    "--seed": "--seeds",
    "--sync.every": "--every",
    "--data.batch-size": "--batch",
    "--model.preset": "--sizes",
    "--model.width": "--sizes",
    "--model.directory": "--sizes",
    "--transport": None,
    "--batched": None,
    "--run-dir": "--out",
    "--name": "--out",
    "--resume": None,
}
"""Flags of a recipe that a sweep sets itself, and which of its own say so."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. Fix: see lowcomm sweep --help")


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The sweep's own flags, lists taken apart, and those of the recipe. Raises ConfigError."""
    options, rest = _parser().parse_known_args(list(arguments))
    refuse_own_flags(rest)
    options.sizes, options.hold_out = _words(options.sizes), _words(options.hold_out)
    for name in ("islands", "every", "seeds"):
        setattr(options, name, _numbers(name, getattr(options, name)))
    return options, rest


def refuse_own_flags(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a recipe's flag that the sweep sets: it would be ignored."""
    for argument in arguments:
        flag = argument.split("=", 1)[0].replace("_", "-").replace("--no-", "--", 1)
        if flag in OWN_FLAGS:
            instead = OWN_FLAGS[flag]
            fix = f"use {instead}" if instead else "leave it out"
            raise ConfigError(f"{flag} is set by the sweep for each cell. Fix: {fix}")


def _parser() -> _Parser:
    parser = _Parser(
        prog="lowcomm sweep",
        description="Run a grid of sizes, islands and H on this machine and fit the local-SGD scaling law.",
        epilog="Other flags are the recipe's. Cells that are done are not repeated.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="RECIPE.py:FUNCTION")
    parser.add_argument("--sizes", required=True, help="hidden widths of the recipe's preset, or presets: 32,48,nano")
    parser.add_argument("--hold-out", default="", help="sizes to predict and to measure, outside of the fit")
    parser.add_argument("--islands", default="1,2,4", help="numbers of islands")
    parser.add_argument("--every", default="16,64", help="inner steps per round (H)")
    parser.add_argument("--seeds", default="0", help="seeds; several narrow the intervals")
    parser.add_argument("--batch", type=int, default=None, help="sequences per step over all islands")
    parser.add_argument("--confidence", type=_confidence, default=0.95, help="level of the intervals (0.95)")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="where cells and sweep.json go")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and stop")
    return parser


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and below 1")
    return value


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise ConfigError(f"{name} = {text!r} is not allowed: whole numbers. Fix: pass --{name} 1,2,4") from None
