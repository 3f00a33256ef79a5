"""What a joiner makes of `run.json`: data from others, checked before anything of it is used."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowcomm.config import RunConfig
from lowcomm.config_file import to_dict
from lowcomm.config_read import read_config
from lowcomm.exchange.store import Store
from lowcomm.model.origin import Scratch
from lowcomm.store import keys
from lowcomm.store.objects import Objects, StoreError
from lowcomm.store.open import open_objects
from lowcomm.store.probe import check_access
from lowcomm.store.run_file import ARITHMETIC, RunFile
from lowcomm.storerun.checks import check_store_run
from lowcomm.storerun.create_run import paths_of, read_run
from lowcomm.storerun.plan import choice_of, rules_of
from lowcomm.types import ConfigError

OWN = {
    "run_dir", "device", "threads", "log_every", "tensorboard", "checkpoint", "eval", "island", "store", "resume",
}  # fmt: skip
"""Fields that each member sets for itself."""
OWN_INSIDE = ("data.cache_dir", "model.compile", "model.autocast_bf16", "data.source.skip_bad_rows")
PATHS = ("glob", "data_files", "path", "directory", "adapter")
"""Last names of fields that say where something lies on this machine; what lies there is compared by digest."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run as the store has it."""

    objects: Objects
    run: RunFile
    config: RunConfig

    @property
    def islands(self) -> int:
        """The number that it was made for."""
        return int(self.run.data["islands"])


def open_run(url: str) -> Opened:
    """Read `run.json` and its configuration. Raises ConfigError."""
    objects = open_objects(url)
    try:
        run = read_run(objects.get(keys.RUN), objects.where)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    if run.arithmetic != ARITHMETIC:
        raise ConfigError(
            f"store = {objects.where!r}: the run's arithmetic is {run.arithmetic!r}, here it is {ARITHMETIC!r}. Fix: "
            "install the version of lowcomm that started it"
        )
    config = read_config(run.configuration)
    config = dataclasses.replace(config, store=url)
    count = run.data.get("islands")
    if not isinstance(count, int) or not 1 <= count <= 100_000:
        raise ConfigError(f"store = {objects.where!r}: run.json names {count!r} islands. Fix: start a new run")
    if not isinstance(config.sync.exchange, Store):
        raise ConfigError(f"store = {objects.where!r}: run.json has no settings of a store run. Fix: start a new run")
    check_store_run(config, count)
    if rules_of(config, run).codec_name != run.codec:
        raise ConfigError(
            f"sync.codec = {config.sync.codec!r} is not the run's, {run.codec}. Fix: install the version of lowcomm "
            "that started the run"
        )
    return Opened(objects=objects, run=run, config=config)


def check_writable(opened: Opened) -> None:
    """Raise ConfigError unless this member may create, read and list."""
    try:
        check_access(opened.objects, secrets.token_hex(16))
    except StoreError as error:
        raise ConfigError(str(error)) from error


def check_own(stored: RunConfig, given: RunConfig) -> None:
    """Raise ConfigError if flags change what all members must have alike."""
    before, after = to_dict(stored), to_dict(given)
    for name, old, new in _differences("", before, after):
        top, last = name.split(".")[0], name.split(".")[-1]
        if top in OWN or name in OWN_INSIDE or (last in PATHS and name.split(".")[0] in ("data", "model")):
            continue
        raise ConfigError(
            f"{name} = {new!r} is not allowed: the run has {old!r} for all its members. Fix: leave the flag out"
        )


def _differences(prefix: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[tuple[str, Any, Any]] = []
        for key in {**old, **new}:
            name = f"{prefix}.{key}" if prefix else str(key)
            found += _differences(name, old.get(key), new.get(key))
        return found
    return [] if old == new else [(prefix, old, new)]


def check_paths(stored: object, given: object, allowed: Sequence[Path]) -> None:
    """Raise ConfigError for a path that a stored configuration, or part of one, names and nobody here has allowed."""
    own = {p for p in paths_of(given) if p not in paths_of(stored)}
    for path in paths_of(given):
        if path not in own and not any(path.resolve().is_relative_to(a.resolve()) for a in allowed):
            raise ConfigError(
                f"the run reads {str(path)!r} on this machine. Fix: pass --allow {path} if it may, or the flag with "
                "the place where its files lie here"
            )


def described(opened: Opened, config: RunConfig) -> list[str]:
    """Lines that say what a member is about to load; nothing of it is executed."""
    run, data, model = opened.run, config.data, config.model
    elements = sum(layout.numel for layout in run.layouts)
    what = "own text" if run.data["kind"] == "own" else f"shared text, {run.data['blocks']} blocks"
    scratch = isinstance(model.origin, Scratch)
    start = model.directory or (f"preset {model.preset}" if scratch else model.origin)
    lines = [
        f"run {config.name} ({run.run_id[:8]}) at {opened.objects.where}, islands at its start: {opened.islands}",
        f"  model: {start}, {elements:,} trained values; weights come from the store",
        f"  data: {data.source!r}, tokenizer {data.tokenizer!r}, {what}",
        f"  rounds: every {config.sync.every} steps, {config.sync.codec!r}, {choice_of(config)!r}",
    ]
    lines += [f"  reads {path}" for path in paths_of(config)]
    return lines
