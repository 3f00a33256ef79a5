"""Flags to a configuration: parts by their specs, every other field by tyro."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

from lowcomm.flags.assign import assign_parts, help_of_parts
from lowcomm.types import ConfigError

Config = TypeVar("Config")


def parse_flags(default: Config, arguments: Sequence[str], prog: str) -> Config:
    """The recipe's configuration with the flags' values. Raises ConfigError on one line; `--help` prints and leaves."""
    import tyro

    from lowcomm.run.host_checks import check_home

    check_home()  # fields have paths below it
    default, rest = assign_parts(default, arguments)
    caught, rest = io.StringIO(), _with_values(rest)
    try:
        with contextlib.redirect_stderr(caught):
            plain = (tyro.conf.AvoidSubcommands,)  # `Mechanism | None` is what the recipe makes it
            return tyro.cli(type(default), default=default, args=rest, prog=prog, config=plain)
    except SystemExit as stop:
        if stop.code in (0, None):
            print(help_of_parts(default), end="")
            raise
        words = re.sub(r"[─-╿]+", " ", caught.getvalue())
        raise ConfigError(" ".join(words.split())) from None


def _with_values(arguments: Sequence[str]) -> list[str]:
    """`--resume` alone, which is a field of three values, as `--resume True`; `--no-resume` as `--resume False`."""
    given: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument == "--no-resume":
            given += ["--resume", "False"]
            continue
        given.append(argument)
        if argument == "--resume" and following not in ("auto", "True", "False"):
            given.append("True")
    return given
