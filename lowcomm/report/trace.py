"""Chrome trace event JSON of one or several runs: it opens in Perfetto (ui.perfetto.dev) and chrome://tracing.

One process per island, with a thread for computing and one for the link. Times are microseconds of the run's clock,
which all islands share; training is cut where steps were logged and where it stopped for a sync.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lowcomm.report.lanes import Lanes, Slice, lanes_of
from lowcomm.report.load import Run, load_run, number
from lowcomm.report.method import method_of
from lowcomm.report.series import labels
from lowcomm.types import ConfigError

# Perfetto lists the thread first whose number is that of its process, and no two threads may have one number: a lane's
# number is its process's plus one of these.
COMPUTE, LINK, LANES = 0, 1, 10


def write_trace(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write the trace to `out` and return its path. Raises ConfigError as `write_report` does."""
    runs = [load_run(Path(run_dir)) for run_dir in run_dirs]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(trace(runs), separators=(",", ":"), allow_nan=False)
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"trace={str(out)!r} cannot be written ({error.strerror}): pass --trace with a path"
        ) from None
    return out


def trace(runs: Sequence[Run]) -> dict[str, Any]:
    """The JSON object format: `{"traceEvents": [...], "displayTimeUnit": "ms"}`."""
    events: list[dict[str, Any]] = []
    pid = 0
    for run, name in zip(runs, labels(runs), strict=True):
        method = method_of(run)
        for island, lanes in lanes_of(run).items():
            pid += LANES
            title = f"island {island}" if len(runs) == 1 else f"{name}: island {island}"
            events += _names(pid, title)
            events += _lane(pid, pid + COMPUTE, lanes.compute, method.codec)
            events += _lane(pid, pid + LINK, lanes.link, method.codec)
            events += _counter(pid, lanes)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names(pid: int, title: str) -> list[dict[str, Any]]:
    shared = {"ph": "M", "pid": pid, "ts": 0}
    return [
        {**shared, "tid": pid, "name": "process_name", "args": {"name": title}},
        {**shared, "tid": pid, "name": "process_sort_index", "args": {"sort_index": pid}},
        {**shared, "tid": pid + COMPUTE, "name": "thread_name", "args": {"name": "compute"}},
        {**shared, "tid": pid + LINK, "name": "thread_name", "args": {"name": "link"}},
    ]


def _lane(pid: int, tid: int, slices: Sequence[Slice], codec: str) -> Iterator[dict[str, Any]]:
    """Complete events. Ends are rounded as starts are, so that neighbours touch and never overlap."""
    for part in slices:
        start, end = _microseconds(part.start_s), _microseconds(part.end_s)
        if end > start:
            shared = {"ph": "X", "cat": part.kind, "pid": pid, "tid": tid, "ts": start, "dur": end - start}
            yield {**shared, "name": _name(part), "args": _args(part, codec)}


def _microseconds(seconds_s: float) -> int:
    return round(seconds_s * 1e6)


def _name(part: Slice) -> str:
    event = part.event or {}
    round_index, fragment, step = (number(event.get(key)) for key in ("round", "fragment", "step"))
    if part.kind == "training":
        known = event.get("event") == "step" and step is not None
        return f"training to step {step:.0f}" if known else "training"
    if part.kind == "blocked" and event.get("event") == "step":
        return "gradients, sum since the last line"
    if part.kind == "transfer" and fragment is not None:
        return f"fragment {fragment:.0f}"
    return part.kind if round_index is None else f"{part.kind}, round {round_index:.0f}"


def _args(part: Slice, codec: str) -> dict[str, Any]:
    event = part.event or {}
    keys = {"round": "round", "step": "step", "fragment": "fragment", "exchanged_bytes": "bytes", "cause": "cause"}
    if part.kind == "training":
        keys = {"loss": "loss", "step": "step"} if event.get("event") == "step" else {}
    args = {new: event[key] for key, new in keys.items() if event.get(key) is not None}
    if part.kind == "transfer":
        args["codec"] = codec
    if part.kind == "late":
        args["why"] = event.get("note")
    return args


def _counter(pid: int, lanes: Lanes) -> Iterator[dict[str, Any]]:
    """Bytes sent so far, as a curve above the lanes."""
    for part in lanes.link:
        sent_bytes = number((part.event or {}).get("bytes_sent"))
        if part.kind == "transfer" and sent_bytes is not None:
            ts = _microseconds(part.end_s)
            yield {"ph": "C", "pid": pid, "tid": pid, "ts": ts, "name": "bytes sent", "args": {"bytes": sent_bytes}}
