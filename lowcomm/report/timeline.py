"""The sync timeline of one run: a row per island over wall-clock, a bar per sync, training behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lowcomm.report.figures import Figure, axis, colour, layout, rounded, time_unit
from lowcomm.report.load import Event, Run, number
from lowcomm.report.series import POINTS_PER_TRACE, islands_of
from lowcomm.report.units import format_bytes, format_decimal, format_seconds

_ROWS = 64
_RANGE_RATIO = 5.0


def timeline_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """One figure per run; runs of similar length share the range, so that they compare by eye."""
    spans_s = [_span_s(run) for run in runs]
    known_s = [span for span in spans_s if span > 0]
    shared = bool(known_s) and max(known_s) <= _RANGE_RATIO * min(known_s)
    return [
        _timeline(run, name, index, max(known_s) if shared else span_s)
        for index, (run, name, span_s) in enumerate(zip(runs, names, spans_s, strict=True))
    ]


def _span_s(run: Run) -> float:
    return max((number(event.get("time_s")) or 0.0 for event in run.events), default=0.0)


def _timeline(run: Run, name: str, index: int, range_s: float) -> Figure:
    islands = islands_of(run)
    rows = islands[:_ROWS]
    in_rows = set(rows)
    syncs = [
        event
        for event in run.of("sync")
        if number(event.get("sync_s")) is not None
        and number(event.get("time_s")) is not None
        and number(event.get("island")) in in_rows
    ]
    stride = max(1, math.ceil(len(syncs) / POINTS_PER_TRACE))
    divisor, unit = time_unit(range_s)
    data = [_training(run, rows, divisor), *_bars(_every(syncs, stride), index, divisor)]
    xaxis = axis(f"wall-clock ({unit})") | {"range": [0, range_s / divisor or 1], "nticks": 9}
    yaxis = axis("island") | {"type": "category", "autorange": "reversed", "showgrid": False}
    yaxis |= {"categoryorder": "array", "categoryarray": [str(row) for row in rows]}
    if len(rows) <= 24:
        yaxis |= {"dtick": 1}
    look = layout(xaxis, yaxis) | {"barmode": "overlay", "bargap": 0.3}
    # 54 px for the margins and the axis below the rows; thin rows when there are many islands.
    look["height"] = 54 + len(rows) * (26 if len(rows) <= 16 else 14)
    notes = [f"{len(syncs)} syncs"] if stride == 1 else [f"1 in {stride} of {len(syncs)} syncs is drawn"]
    if len(islands) > _ROWS:
        notes.append(f"first {_ROWS} of {len(islands)} islands")
    return Figure(title=name, caption="; ".join(notes), spec={"data": data, "layout": look}, empty=not islands)


def _every(syncs: Sequence[Event], stride: int) -> list[Event]:
    """Every stride-th sync per island: thinning the file order could leave out an island altogether."""
    seen: dict[Any, int] = {}
    kept: list[Event] = []
    for event in syncs:
        count = seen.get(event["island"], 0)
        seen[event["island"]] = count + 1
        if count % stride == 0:
            kept.append(event)
    return kept


def _training(run: Run, rows: Sequence[int], divisor: float) -> dict[str, Any]:
    until_s: dict[float, float] = {}
    for event in run.events:
        island, time_s = number(event.get("island")), number(event.get("time_s"))
        if island is not None and time_s is not None:
            until_s[island] = max(until_s.get(island, 0.0), time_s)
    return {
        "type": "bar",
        "orientation": "h",
        "y": [str(row) for row in rows],
        "x": rounded([until_s.get(row, 0.0) / divisor for row in rows]),
        "marker": {"color": "--training", "line": {"width": 0}},
        "hoverinfo": "skip",
    }


def _bars(syncs: Sequence[Event], index: int, divisor: float) -> list[dict[str, Any]]:
    """The whole sync in grey, and on top of it, in the run's colour, the part in which training waited.

    A sync's `time_s` is its end; what overlaps training comes first and the wait last.
    """
    ends_s = [number(event.get("time_s")) or 0.0 for event in syncs]
    islands = [str(int(number(event.get("island")) or 0)) for event in syncs]
    whole_s = [number(event.get("sync_s")) or 0.0 for event in syncs]
    # A line without blocked_s says nothing about overlap; a sync then counts as blocking.
    blocked = [number(event.get("blocked_s")) for event in syncs]
    waited_s = [w if b is None else min(b, w) for b, w in zip(blocked, whole_s, strict=True)]
    texts = [_hover(event) for event in syncs]
    bars = []
    for lengths_s, fill in ((whole_s, "--overlap"), (waited_s, colour(index))):
        bars.append(
            {
                "type": "bar",
                "orientation": "h",
                "y": islands,
                "base": rounded([(e - s) / divisor for e, s in zip(ends_s, lengths_s, strict=True)]),
                "x": rounded([s / divisor for s in lengths_s]),
                "marker": {"color": fill, "line": {"width": 0}},
                "hovertext": texts,
                "hovertemplate": "%{hovertext}<extra></extra>",
            }
        )
    return bars


def _hover(event: Event) -> str:
    """Made of numbers only, so it needs no escaping."""
    round_index = number(event.get("round"))
    island = number(event.get("island"))
    lines = (
        f"island {island:.0f}, round {'?' if round_index is None else f'{round_index:.0f}'}",
        f"sync {format_seconds(number(event.get('sync_s')))}, waited {format_seconds(number(event.get('blocked_s')))}",
        f"sent so far {format_bytes(number(event.get('bytes_sent')))}",
        f"pseudo-gradient norm {format_decimal(number(event.get('delta_norm')), 4)}",
    )
    return "<br>".join(lines)
