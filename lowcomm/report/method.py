"""Which method a run used, in a few words, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowcomm.report.load import Run


@dataclass(frozen=True, kw_only=True)
class Method:
    """Names as a recipe writes them; "?" where the configuration does not say."""

    schedule: str
    codec: str
    every: str

    @property
    def label(self) -> str:
        """`Streaming, ErrorFeedback(Int4), H = 32`."""
        return f"{self.schedule}, {self.codec}, H = {self.every}"


def method_of(run: Run) -> Method:
    """The method of a run."""
    sync = run.config.get("sync")
    sync = sync if isinstance(sync, dict) else {}
    every = sync.get("every")
    return Method(
        schedule=_class(sync.get("schedule")),
        codec=_class(sync.get("codec")),
        every="?" if every is None else str(every),
    )


def _class(value: Any) -> str:
    """`Outer(Inner)` for a stored dataclass that holds others."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return "?"
    inner = [_class(part) for part in value.values() if isinstance(part, dict)]
    name = value["type"].rpartition(".")[2]
    return f"{name}({', '.join(inner)})" if inner else name
