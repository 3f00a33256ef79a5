"""Server-sent events of one run: all that changes on its page, whenever its files have changed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from lowcomm.ui.look import live_parts
from lowcomm.ui.trainings import CONSOLE, Trainings

LOOK_S = 0.5
"""Between two looks at the files."""
SHARE = 0.1
"""Of one core that may go into drawing a run whose files grow all the time."""
BEAT_S = 15.0
"""Between two signs of life, by which a browser that is gone is noticed."""
FILES = ("config.json", "metrics.jsonl", "summary.json", CONSOLE)


async def events(directory: Path, trainings: Trainings, closing: Callable[[], bool]) -> AsyncIterator[str]:
    """Until the run has ended, which is said last, or the server closes. Text of the event stream."""
    seen: object = None
    ready_s = said_s = 0.0
    while not closing():
        now_s = time.monotonic()
        alive = await run_in_threadpool(trainings.alive, directory)
        facts = (_facts(directory), alive)
        if facts != seen and (now_s >= ready_s or not alive):
            seen = facts
            parts = await run_in_threadpool(live_parts, directory, trainings)
            said_s = time.monotonic()
            ready_s = said_s + (said_s - now_s) / SHARE
            yield event("run", parts)
            if not parts["alive"]:
                yield event("end", {})
                return
        elif now_s - said_s > BEAT_S:
            said_s = now_s
            yield ": here\n\n"
        await asyncio.sleep(LOOK_S)


def event(name: str, value: object) -> str:
    """One event; its data is JSON on one line."""
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'), allow_nan=False)}\n\n"


def _facts(directory: Path) -> tuple[tuple[int, int] | None, ...]:
    """Size and time of each file."""
    return tuple(_fact(directory / name) for name in FILES)


def _fact(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns
