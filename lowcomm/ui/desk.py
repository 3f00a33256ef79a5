"""What the pages of one server share: the runs, the trainings that it started, where everything lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request

from lowcomm.types import ConfigError
from lowcomm.ui.run_list import RunList
from lowcomm.ui.trainings import Trainings

LARGEST_BYTES = 200_000
"""Of what a page sends."""


@dataclass(kw_only=True)
class Desk:
    """One server's."""

    root: Path
    """Directory of the runs."""
    base: str
    """Path of all pages, with a slash at its end."""
    trainings: Trainings = field(default_factory=Trainings)
    closing: Callable[[], bool] = lambda: False
    """Whether the server is about to end."""

    @property
    def runs(self) -> RunList:
        """Read anew each time."""
        return RunList(root=self.root)

    def directory(self, name: str) -> Path:
        """Of a run that is listed, or of one that begins or was refused. Raises ConfigError for any other name."""
        if name in self.trainings.beginning() or name in self.trainings.refused:
            return self.root / name
        return self.runs.directory(name)


def desk_of(request: Request) -> Desk:
    """The server's."""
    return cast("Desk", request.app.state.desk)


async def sent(request: Request) -> Mapping[str, Any]:
    """The JSON object that a page sends. Raises ConfigError for anything else, and for more than LARGEST_BYTES."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BYTES:
            raise ConfigError(f"the request has more than {LARGEST_BYTES} bytes. Fix: send less")
    try:
        value: Any = json.loads(bytes(body)) if kind == "application/json" else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError("the request is no JSON object. Fix: use the page")
    return cast("dict[str, Any]", value)


def text_of(values: Mapping[str, Any], name: str) -> str:
    """A text among them. Raises ConfigError."""
    value = values.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"{name} is no text. Fix: use the page")
    return value


def given_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The changed fields among them. Raises ConfigError."""
    value = values.get("given")
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ConfigError("given is no table of texts. Fix: use the page")
    return cast("dict[str, str]", value)
