"""Which method a run used, in a few words, from its configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lowcomm.report.load import Run


@dataclass(frozen=True, kw_only=True)
class Method:
    """Names as a recipe writes them; "?" where the configuration does not say."""

    schedule: str
    codec: str
    every: str
    key: str
    """Equal for runs of the same method with the same settings."""

    @property
    def label(self) -> str:
        """`Streaming, ErrorFeedback(Int4), H = 32`."""
        return f"{self.schedule}, {self.codec}, H = {self.every}"


def method_of(run: Run) -> Method:
    """The method of a run."""
    sync = run.config.get("sync")
    sync = sync if isinstance(sync, dict) else {}
    every = sync.get("every")
    schedule = _class(sync.get("schedule"))
    delay = sync["schedule"].get("delay") if schedule != "?" else None
    return Method(
        schedule=f"{schedule} (delay {delay})" if delay else schedule,
        codec=_class(sync.get("codec")),
        every="?" if every is None else str(every),
        key=json.dumps([sync.get(part) for part in ("schedule", "codec", "outer", "every")], sort_keys=True),
    )


def _class(value: Any) -> str:
    """`Outer(Inner)` for a stored dataclass that holds others."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return "?"
    inner = [_class(part) for part in value.values() if isinstance(part, dict)]
    name = value["type"].rpartition(".")[2]
    return f"{name}({', '.join(inner)})" if inner else name
