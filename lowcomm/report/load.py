"""Reading a run directory: config.json, environment.json, metrics.jsonl, summary.json, clients.json and others."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowcomm.types import ConfigError

Event = dict[str, Any]
"""One line of metrics.jsonl; a key that does not apply is null."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run left behind, or has left behind so far."""

    path: Path
    name: str
    status: str
    """`done`, `stopped` or `failed` from the summary; `running` where no summary exists yet."""
    config: dict[str, Any]
    environment: dict[str, Any]
    """Empty where environment.json is missing."""
    summary: dict[str, Any]
    """Empty while the run is still going."""
    clients: dict[str, Any]
    """Empty where no client was evaluated."""
    partition: dict[str, Any]
    """Empty where text does not belong to clients."""
    influence: dict[str, Any]
    """Empty where nobody measured it."""
    events: tuple[Event, ...]
    """In file order."""
    torn: bool
    """The last line was cut short, as a crash or a run that is writing right now leaves it."""
    unreadable_lines: int
    """Lines before the last one that are not JSON objects; they are left out."""

    def of(self, event: str) -> list[Event]:
        """The events of one kind, in file order."""
        return [line for line in self.events if line.get("event") == event]


def number(value: object) -> float | None:
    """A finite number, or None for anything else: null, NaN, text, a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def load_run(run_dir: Path) -> Run:
    """Read a run directory, finished or not.

    Raises ConfigError where `run_dir` is no run directory, naming the missing file, and where a JSON file
    in it cannot be read. Only metrics.jsonl may be damaged: it is appended to while the run lives.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ConfigError(
            f"run directory {str(run_dir)!r} is not a directory: pass what --run-dir named, a folder that "
            "holds config.json and metrics.jsonl"
        )
    config = _read_object(run_dir / "config.json", required=True)
    events, torn, unreadable_lines = _read_events(run_dir / "metrics.jsonl")
    summary = _read_object(run_dir / "summary.json", required=False)
    name = summary.get("name") or config.get("name") or run_dir.resolve().name
    return Run(
        path=run_dir,
        name=str(name),
        status=str(summary.get("status", "running")),
        config=config,
        environment=_read_object(run_dir / "environment.json", required=False),
        summary=summary,
        clients=_read_object(run_dir / "clients.json", required=False),
        partition=_read_object(run_dir / "partition.json", required=False),
        influence=_read_object(run_dir / "influence.json", required=False),
        events=events,
        torn=torn,
        unreadable_lines=unreadable_lines,
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"run directory {str(path.parent)!r} has no {path.name}: pass a directory that "
            "`lowcomm train` or `lowcomm simulate` wrote, or wait until the run has started"
        ) from None
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error.strerror}): check its type and permissions") from None


def _read_object(path: Path, *, required: bool) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    value = _parse_object(_read_bytes(path))
    if value is None:
        raise ConfigError(f"{str(path)!r} is not a JSON object: restore it from a copy or run again")
    return value


def _parse_object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_events(path: Path) -> tuple[tuple[Event, ...], bool, int]:
    lines = [line for line in _read_bytes(path).split(b"\n") if line.strip()]
    parsed = [_parse_object(line) for line in lines]
    torn = bool(parsed) and parsed[-1] is None
    events = tuple(line for line in parsed if line is not None)
    if parsed and not events and len(parsed) > 1:
        raise ConfigError(f"{str(path)!r} holds no JSON line among {len(parsed)}: pass the directory of a run")
    return events, torn, len(parsed) - len(events) - torn
