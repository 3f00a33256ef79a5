"""What a form holds, judged: the command line that it stands for, and the one-line fix of each field that is wrong.

Fields become flags of `lowcomm train`, and the flags are read as the command line reads them, so that a run's
config.json is the same to the byte whichever way it was started.
"""

from __future__ import annotations

import functools
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowcomm.config import RunConfig
from lowcomm.config_check import check
from lowcomm.exchange.store import Store
from lowcomm.flags.assign import assign_parts, part_hint
from lowcomm.flags.early import refuse_early
from lowcomm.flags.parse import parse_flags
from lowcomm.flags.write import written
from lowcomm.membership import DEFAULT_ISLANDS
from lowcomm.recipe import find, load
from lowcomm.types import ConfigError, LowcommError
from lowcomm.ui.recipes import check_offered
from lowcomm.ui.rows import Row, flag, rows_of, sample

Given = Mapping[str, str]
"""What was typed, by the path of the field."""
LOCK = threading.RLock()
"""Recipes are modules, and the reader of flags catches what is printed: one at a time."""
USUAL_RUNS_DIR = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A recipe with the fields that were changed."""

    reference: str
    config: RunConfig
    """With every change that could be read."""
    rows: tuple[Row, ...]
    given: dict[str, str]
    """Changes that have a field; the others belonged to a part that is not there any more."""
    before: dict[str, str]
    """What a changed field would be without its change."""
    flags: list[str]
    problems: dict[str, str] = field(default_factory=dict)
    """One line each, by path; "" for what belongs to no field."""

    @property
    def arguments(self) -> list[str]:
        """Of `lowcomm`."""
        return ["train", self.reference, *self.flags]

    @property
    def command(self) -> str:
        """As it is typed into a shell."""
        return shlex.join(["lowcomm", *self.arguments])

    @property
    def shape(self) -> str:
        """Changes where the form has other rows: another class stands in the place of a part."""
        return " ".join(f"{row.path}:{row.chosen}" for row in self.rows)


def judge(reference: str, given: Given, runs_dir: Path, choose: tuple[str, str] | None = None) -> Judged:
    """Read and check a form. choose: (path, class) of a part that has just been picked from its list.

    Raises ConfigError for a recipe that is not offered or does not load.
    """
    check_offered(reference)
    with LOCK:
        default = recipe_config(reference)
        if choose is not None:
            given = _chosen(default, given, *choose)
        config, words, before, problems = _with_parts(default, given)
        rows = tuple(rows_of(config))
        words |= _leaf_flags(rows, given, before, reference, problems)
        held = {path: given[path] for path in given if path in words or path in problems}
        read = _read(default, config, words, problems)
        _check(default, read, words, rows, problems)
        found = _in_runs_dir(read, runs_dir, problems)
    flags = [word for part in words.values() for word in part] + found
    return Judged(
        reference=reference, config=read, rows=rows, given=held, before=before, flags=flags, problems=problems
    )


def recipe_config(reference: str) -> RunConfig:
    """The recipe's configuration; its file is run again only when it has changed. Raises ConfigError."""
    facts = find(reference)[0].stat()
    try:
        with LOCK:
            return _loaded(reference, facts.st_mtime_ns, facts.st_size)
    except SystemExit as stop:
        raise ConfigError(f"recipe {reference} ends the process ({stop}). Fix: return a RunConfig") from stop


@functools.lru_cache(maxsize=64)
def _loaded(reference: str, changed_ns: int, size_bytes: int) -> RunConfig:
    return load(reference)


def _chosen(default: RunConfig, given: Given, path: str, name: str) -> dict[str, str]:
    """The changes with another class at `path`; the class that is there without them brings its own values back."""
    others = {k: v for k, v in given.items() if k != path}
    config, _, _, _ = _with_parts(default, others)
    if part_hint(config, path.split(".")) is None:
        return others
    held = _at(config, path)
    same = name == ("None" if held is None else type(held).__name__)
    return others if same else {**others, path: sample(config, path, name)}


def _with_parts(
    default: RunConfig, given: Given
) -> tuple[RunConfig, dict[str, list[str]], dict[str, str], dict[str, str]]:
    """The configuration with the parts that were typed, outer ones first; their flags, their specs before, problems."""
    config, words, before, problems = default, dict[str, list[str]](), dict[str, str](), dict[str, str]()
    for path in sorted(given, key=lambda p: (p.count("."), p)):
        if part_hint(config, path.split(".")) is None:
            continue
        before[path] = written(_at(config, path))
        words[path] = [f"--{path.replace('_', '-')}", given[path]]
        try:
            config, _ = assign_parts(config, [f"--{path}={given[path]}"])
        except ConfigError as error:
            problems[path] = str(error)
    return config, words, before, problems


def _leaf_flags(
    rows: Sequence[Row], given: Given, before: dict[str, str], reference: str, problems: dict[str, str]
) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {}
    for row in rows:
        if row.kind == "part" or row.path not in given:
            continue
        before[row.path] = row.value
        try:
            words[row.path] = flag(row, given[row.path])
            refuse_early(find(reference)[0], words[row.path])
        except ConfigError as error:
            problems[row.path] = str(error)
    return words


def _at(config: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


def _flat(words: Mapping[str, list[str]], problems: Mapping[str, str]) -> list[str]:
    return [word for path, part in words.items() if path not in problems for word in part]


def _read(default: RunConfig, config: RunConfig, words: Mapping[str, list[str]], problems: dict[str, str]) -> RunConfig:
    """As the command line reads it. Where that fails, each flag is read alone, to name the wrong ones."""
    try:
        return parse_flags(default, _flat(words, problems), "lowcomm train")
    except ConfigError as error:
        alike = str(error)
    for path in [p for p in words if p not in problems]:
        try:
            parse_flags(config, words[path], "lowcomm train")
        except ConfigError as error:
            problems[path] = str(error)
    try:
        return parse_flags(default, _flat(words, problems), "lowcomm train")
    except ConfigError:
        problems[""] = alike
        return config


def _check(
    default: RunConfig,
    config: RunConfig,
    words: Mapping[str, list[str]],
    rows: Sequence[Row],
    problems: dict[str, str],
) -> None:
    """All that `check` finds: a change that it refuses is left out, and the rest is checked again."""
    for _ in range(len(words) + 1):
        try:
            check(config, DEFAULT_ISLANDS if config.islands is None else config.islands)
            return
        except LowcommError as error:
            message = " ".join(str(error).split())
        path = named(message, [row.path for row in rows])
        problems.setdefault(path, message)
        near = [p for p in words if p not in problems or p == path]
        blamed = [p for p in near if path and (p == path or p.startswith(f"{path}.") or path.startswith(f"{p}."))]
        if not blamed:
            return
        for changed in blamed:
            problems.setdefault(changed, message)
        try:
            config = parse_flags(default, _flat(words, problems), "lowcomm train")
        except ConfigError:
            return


def named(message: str, paths: Sequence[str]) -> str:
    """The field that a message begins with; "" where it begins with none."""
    start = message.removeprefix("--")
    found = [path for path in paths if start.startswith(path) and not start[len(path) :][:1].isalnum()]
    return max((p for p in found if start[len(p) :][:1] != "_"), key=len, default="")


def _in_runs_dir(config: RunConfig, runs_dir: Path, problems: dict[str, str]) -> list[str]:
    """The flag that puts the run below the directory of runs, where it would lie elsewhere; problems with its place."""
    directory = runs_dir / config.name
    if config.store is not None or isinstance(config.sync.exchange, Store):
        problems.setdefault("", "a run that lives in a store is started in a terminal. Fix: lowcomm train ... --store")
    elif "name" not in problems and Path(config.name).name == config.name and (directory / "config.json").exists():
        problems["name"] = (
            f"name = {config.name!r} is not allowed: {directory} already holds a run. Fix: give another name, such as "
            f"{free_name(config.name, runs_dir)}, or resume that run on its page"
        )
    plain = config.run_dir is None and runs_dir == USUAL_RUNS_DIR
    return [] if plain or config.directory == directory else ["--run-dir", str(directory)]


def free_name(name: str, runs_dir: Path) -> str:
    """The name itself, or with the first number behind it that no run has."""
    if not (runs_dir / name).exists():
        return name
    stem, dash, number = name.rpartition("-")
    stem = stem if dash and number.isdigit() else name
    return next(n for i in range(2, 10**6) if not (runs_dir / (n := f"{stem}-{i}")).exists())


def with_free_name(config: RunConfig, given: Given, runs_dir: Path) -> dict[str, str]:
    """The changes, and a name that no run has where the recipe's own is taken and none is given."""
    free = free_name(config.name, runs_dir)
    return {**given} if "name" in given or free == config.name else {"name": free, **given}
