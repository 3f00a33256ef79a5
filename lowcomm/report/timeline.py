"""The timeline of one run: two lanes per island over wall-clock, what it computed and what its link carried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lowcomm.report.figures import Figure, axis, colour, layout, rounded, time_unit
from lowcomm.report.lanes import Kind, Slice, lanes_of
from lowcomm.report.load import Event, Run, number
from lowcomm.report.series import POINTS_PER_TRACE
from lowcomm.report.units import format_bytes, format_decimal, format_seconds

_ROWS = 64
_RANGE_RATIO = 5.0
_FILLS: dict[Kind, str] = {
    "evaluation": "--evaluation",
    "blocked": "--blocked",
    "late": "--late",
    "roll call": "--roll",
}
"""Colours of the page; transfers have the run's."""


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
    lanes = lanes_of(run)
    rows = list(lanes)[:_ROWS]
    syncs = sum(number(e.get("island")) in lanes for e in run.of("sync"))
    slices = [(f"{k} compute", s) for k in rows for s in lanes[k].compute] + [
        (f"{k} link", s) for k in rows for s in lanes[k].link
    ]
    divisor, unit = time_unit(range_s)
    data = [_training([(f"{k} compute", lanes[k].compute[-1].end_s) for k in rows if lanes[k].compute], divisor)]
    stride = 1
    for kind, fill in {**_FILLS, "transfer": colour(index)}.items():
        chosen = [(row, s) for row, s in slices if s.kind == kind]
        step = max(1, math.ceil(len(chosen) / POINTS_PER_TRACE))
        stride = max(stride, step)
        if chosen:
            data.append(_bars(_every(chosen, step), fill, divisor))
    averaged = any(s.kind == "blocked" and (s.event or {}).get("event") == "step" for _, s in slices)
    notes = [f"{syncs} syncs"] if stride == 1 else [f"1 in {stride} of {syncs} syncs is drawn"]
    if averaged:
        notes.append("waits of averaged gradients are drawn as their sum between two lines of metrics")
    if len(lanes) > _ROWS:
        notes.append(f"first {_ROWS} of {len(lanes)} islands")
    spec = {"data": data, "layout": _look(rows, any(v.link for v in lanes.values()), range_s / divisor or 1, unit)}
    return Figure(title=name, caption="; ".join(notes), spec=spec, empty=not lanes)


def _look(rows: Sequence[int], with_link: bool, until: float, unit: str) -> dict[str, Any]:
    xaxis = axis(f"wall-clock ({unit})") | {"range": [0, until], "nticks": 9}
    shown = ("compute", "link") if with_link else ("compute",)
    order = [f"{row} {lane}" for row in rows for lane in shown]
    yaxis = axis("island") | {"type": "category", "autorange": "reversed", "showgrid": False}
    yaxis |= {"categoryorder": "array", "categoryarray": order}
    if len(rows) <= 16:
        yaxis |= {"dtick": 1}
    look = layout(xaxis, yaxis) | {"barmode": "overlay", "bargap": 0.2}
    # 54 px for the margins and the axis below the rows; thin rows when there are many islands.
    look["height"] = 54 + len(rows) * len(shown) * (22 if len(rows) <= 16 else 7)
    # a line between the islands, whose lanes belong together
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": {"color": "--grid", "width": 1}}
    look["shapes"] = [line | dict.fromkeys(("y0", "y1"), len(shown) * i - 0.5) for i in range(1, len(rows))]
    return look


def _every(slices: Sequence[tuple[str, Slice]], stride: int) -> list[tuple[str, Slice]]:
    """Every stride-th slice per row: thinning them all together could leave out an island."""
    seen: dict[str, int] = {}
    kept: list[tuple[str, Slice]] = []
    for row, part in slices:
        count = seen.get(row, 0)
        seen[row] = count + 1
        if count % stride == 0:
            kept.append((row, part))
    return kept


def _training(ends_s: Sequence[tuple[str, float]], divisor: float) -> dict[str, Any]:
    """One bar behind everything else of its lane: a slice for each stretch would be most of the file."""
    return {
        "type": "bar",
        "orientation": "h",
        "y": [row for row, _ in ends_s],
        "x": rounded([end_s / divisor for _, end_s in ends_s]),
        "marker": {"color": "--training", "line": {"width": 0}},
        "hoverinfo": "skip",
    }


def _bars(slices: Sequence[tuple[str, Slice]], fill: str, divisor: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "y": [row for row, _ in slices],
        "base": rounded([part.start_s / divisor for _, part in slices]),
        "x": rounded([(part.end_s - part.start_s) / divisor for _, part in slices]),
        "marker": {"color": fill, "line": {"width": 0}},
        "hovertext": [_hover(row, part) for row, part in slices],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _hover(row: str, part: Slice) -> str:
    """Made of numbers and our own words only, so it needs no escaping."""
    event: Event = part.event or {}
    round_index, fragment = number(event.get("round")), number(event.get("fragment"))
    where = f"island {row}" + ("" if round_index is None else f", round {round_index:.0f}")
    lines = [where if fragment is None else f"{where}, fragment {fragment:.0f}"]
    lines.append(f"{part.kind} {format_seconds(part.end_s - part.start_s)}")
    if part.kind == "blocked" and event.get("event") == "step":
        lines.append("averaging gradients, summed since the last line of metrics")
    if event.get("event") == "sync":
        lines += [
            f"exchange {format_seconds(number(event.get('exchange_s')))}, training waited "
            f"{format_seconds(number(event.get('blocked_s')))}",
            f"sent {format_bytes(number(event.get('exchanged_bytes')))}, so far "
            f"{format_bytes(number(event.get('bytes_sent')))}",
            f"pseudo-gradient norm {format_decimal(number(event.get('delta_norm')), 4)}",
        ]
    return "<br>".join(lines)
