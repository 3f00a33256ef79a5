"""The command that goes on with a run, from what the run says of its own start."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowcomm.types import ConfigError
from lowcomm.ui.recipes import check_offered

COMMANDS = ("train", "simulate")


def command_of(directory: Path) -> list[str]:
    """Command, recipe and flags as environment.json has them, without that to resume. Raises ConfigError for others."""
    fix = f"Fix: in a terminal, with its own recipe and flags: lowcomm train ... --run-dir {directory} --resume auto"
    try:
        words: Any = json.loads((directory / "environment.json").read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"run {directory.name} does not say how it was started. {fix}") from error
    known = isinstance(words, list) and len(words) > 2 and all(isinstance(word, str) for word in words)
    if not known or words[1] not in COMMANDS:
        raise ConfigError(f"run {directory.name} was not started by lowcomm train. {fix}")
    try:
        check_offered(words[2])
    except ConfigError as error:
        raise ConfigError(
            f"run {directory.name} has a recipe that is not offered here: {words[2][:80]!r}. {fix}"
        ) from error
    return [*words[1:3], *_without_resume(words[3:])]


def resume_command(directory: Path) -> list[str]:
    """Arguments of `lowcomm` that continue the run. Raises ConfigError where they would train something else."""
    from lowcomm.config_file import check_resumable
    from lowcomm.flags.early import refuse_early
    from lowcomm.flags.parse import parse_flags
    from lowcomm.membership import DEFAULT_ISLANDS
    from lowcomm.recipe import find
    from lowcomm.ui.form import LOCK, recipe_config

    command, reference, *flags = command_of(directory)
    with LOCK:
        refuse_early(find(reference)[0], flags)
        if {"--help", "-h"} & set(flags):
            raise ConfigError(f"run {directory.name} has --help among its flags. Fix: resume it in a terminal")
        config = parse_flags(recipe_config(reference), [*_simulated(command), *flags], "lowcomm train")
        if config.directory.resolve() != directory.resolve():
            raise ConfigError(
                f"run {directory.name} was started as {config.directory}, which is not here. Fix: start lowcomm ui in "
                "the directory that it was started in, or resume it in a terminal with --run-dir"
            )
        config = dataclasses.replace(config, island=dataclasses.replace(config.island, size=config.island.size or 1))
        check_resumable(config, DEFAULT_ISLANDS if config.islands is None else config.islands)
    return [command, reference, *flags, "--resume", "auto"]


def _simulated(command: str) -> list[str]:
    return ["--transport", "simulated"] if command == "simulate" else []


def _without_resume(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip and not word.startswith("--"):
            skip = False
            continue
        skip = word == "--resume"
        if not (skip or word == "--no-resume" or word.startswith("--resume" + "=")):
            kept.append(word)
    return kept


def given_by(flags: Sequence[str]) -> dict[str, str]:
    """Flags as fields of a form; `--no-x` and `--x` without a value are switches."""
    given: dict[str, str] = {}
    words = list(flags)
    while words:
        name, equals, same = words.pop(0).removeprefix("--").replace("\n", " ").partition("=")
        values: list[str] = [same] if equals else []
        while not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        above, dot, last = name.replace("-", "_").rpartition(".")
        path = f"{above}{dot}{last if values else last.removeprefix('no_')}"
        switch = str(not last.startswith("no_"))
        given[path] = switch if not values else values[0] if len(values) == 1 else shlex.join(values)
    return given
