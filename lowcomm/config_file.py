"""The configuration as it is stored in config.json, and what a resumed run may change of it."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import Any

from lowcomm.config import RunConfig
from lowcomm.types import ConfigError


def to_dict(value: Any) -> Any:
    """JSON-able form; each dataclass becomes a dict with its class under "type"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_dict(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{value!r} of type {type(value).__name__} can't be stored in config.json: use a dataclass")


MAY_CHANGE = {
    "run_dir", "resume", "log_every", "step_hashes", "tensorboard", "transport", "batched", "threads", "checkpoint",
    "eval", "device", "turns", "client_state",
}  # fmt: skip
"""Fields that a resumed run may set anew; everything else would change what is being trained."""


def check_resumable(config: RunConfig, islands: int) -> None:
    """Raise ConfigError if a resumed run would train something else than the one whose config.json is stored."""
    path = config.directory / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        _add_defaults(stored, config)
        now = to_dict(dataclasses.replace(config, islands=islands))
        for values in (stored, now):
            for name in ("on_late", "late_tolerance_s", "heartbeat_s"):  # they change nothing of what is trained
                values["sync"].pop(name, None)
            values["data"]["source"].pop("skip_bad_rows", None)  # the way on from a row that ended the run
            for name in ("sampling", "local_steps", "objective", "secure", "exchange"):  # older runs have none of them
                if values["sync"].get(name) is None:
                    values["sync"].pop(name, None)
        changed = [k for k, v in now.items() if k not in MAY_CHANGE and stored.get(k) != v]
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} can't be read ({error}). Fix: start a new run with --run-dir") from error
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{_first_difference(key, stored.get(key), now[key])} differs from the run that is to be resumed. "
            "Fix: resume with the same recipe and flags, or start a new run with --run-dir."
        )


def _add_defaults(stored: Any, config: Any) -> None:
    """Fields that a stored run did not know yet, where they have their defaults: an older version had nothing else."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in stored and dataclasses.is_dataclass(value) and isinstance(stored[f.name], dict):
            _add_defaults(stored[f.name], value)
        elif f.name not in stored and f.default is not dataclasses.MISSING and value == f.default:
            stored[f.name] = to_dict(value)


def _first_difference(path: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                return _first_difference(f"{path}.{key}", old.get(key), new.get(key))
    return f"{path} = {new!r} (stored: {old!r})"
