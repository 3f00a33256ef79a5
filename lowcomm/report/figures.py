"""The curves as plotly figures (plain dicts): quality against tokens, bytes and wall-clock.

A colour that starts with `--` is a CSS variable of the page; its script fills it in, for light and dark.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from lowcomm.report.load import Run
from lowcomm.report.series import POINTS_PER_TRACE, Curve, eval_curve, thin, train_curves

RUN_COLOURS = 8
"""The page defines `--run-0` ... `--run-7`; later runs repeat the colours with another dash."""
_DASHES = ("solid", "dash", "dot", "dashdot")
_FAINT_ISLANDS = 16
"""More single-island lines than this are noise around the mean."""
_LOG_RATIO = 8.0
Cost = Literal["tokens", "sent_bytes", "time_s"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot: `spec` is {data, layout}; `caption` says what a reader could not guess."""

    title: str
    caption: str
    spec: dict[str, Any]
    empty: bool
    """Nothing was logged for it yet."""


def colour(index: int) -> str:
    """The CSS variable of the run at `index`."""
    return f"--run-{index % RUN_COLOURS}"


def plot_label(label: str) -> str:
    """A run's name as plotly text: plotly reads a subset of HTML, and names are untrusted."""
    short = label if len(label) <= 48 else f"{label[:47]}…"
    return html.escape(short, quote=False)


def rounded(values: Sequence[float]) -> list[float]:
    """Six significant digits: more than a screen resolves, at half the file size."""
    return [float(f"{value:.6g}") for value in values]


def time_unit(longest_s: float) -> tuple[float, str]:
    """Divisor and unit in which `longest_s` is easy to read."""
    if longest_s >= 3 * 3600:
        return 3600.0, "h"
    return (60.0, "min") if longest_s >= 5 * 60 else (1.0, "s")


def axis(title: str) -> dict[str, Any]:
    """The look that all axes share."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 12}},
        "gridcolor": "--grid",
        "linecolor": "--axis",
        "tickfont": {"size": 11},
        "zeroline": False,
        "showline": False,
        "automargin": True,
    }


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any]) -> dict[str, Any]:
    """The look that all plots share."""
    return {
        "xaxis": xaxis,
        "yaxis": yaxis,
        "autosize": True,
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "--panel",
            "bordercolor": "--axis",
            "font": {"color": "--text"},
            "namelength": 40,
        },
        "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "color": "--muted"},
    }


def curve_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """Six figures: validation, then training loss, each against tokens, bytes and wall-clock."""
    key = "val_bpb" if any(eval_curve(run, "val_bpb").y for run in runs) else "val_loss"
    unit = "bits per byte" if key == "val_bpb" else "nats per token"
    validation = [(eval_curve(run, key), {}) for run in runs]
    training = [train_curves(run) for run in runs]
    costs: tuple[Cost, ...] = ("tokens", "sent_bytes", "time_s")
    titles = {"tokens": "tokens", "sent_bytes": "bytes sent", "time_s": "wall-clock"}
    figures = [_curve_figure("Validation", unit, titles[c], c, validation, names) for c in costs]
    figures += [_curve_figure("Training loss", "nats per token", titles[c], c, training, names) for c in costs]
    return figures


def _curve_figure(
    what: str,
    unit: str,
    against: str,
    cost: Cost,
    curves: Sequence[tuple[Curve, dict[int, Curve]]],
    names: Sequence[str],
) -> Figure:
    means = [mean for mean, _ in curves]
    log_x = cost == "sent_bytes" and _wide_apart([mean.sent_bytes for mean in means])
    log_y = _explodes([mean.y for mean in means])
    xaxis, divisor = _cost_axis(cost, means, log_x)
    yaxis = axis(unit) | ({"type": "log"} if log_y else {"nticks": 7})
    traces: list[dict[str, Any]] = []
    for index, (mean, islands) in enumerate(curves):
        if len(curves) == 1 and 1 < len(islands) <= _FAINT_ISLANDS:
            limit = max(POINTS_PER_TRACE // len(islands), 4)
            traces += [_trace(curve, cost, divisor, index, None, log_x, limit) for curve in islands.values()]
        traces.append(_trace(mean, cost, divisor, index, names[index], log_x, POINTS_PER_TRACE))
    notes = []
    if len(traces) > len(curves):
        notes.append("bold: mean over the islands; faint: each island")
    if log_x:
        notes.append("log scale; begins with the first sync")
    return Figure(
        title=f"{what} against {against}",
        caption="; ".join(notes),
        spec={"data": traces, "layout": layout(xaxis, yaxis)},
        empty=not any(mean.y for mean in means),
    )


def _cost_axis(cost: Cost, means: Sequence[Curve], log_x: bool) -> tuple[dict[str, Any], float]:
    if cost == "time_s":
        divisor, unit = time_unit(max((max(mean.time_s, default=0.0) for mean in means), default=0.0))
        return axis(f"wall-clock ({unit})") | {"nticks": 6, "rangemode": "tozero"}, divisor
    if cost == "tokens":
        return axis("tokens, all islands") | {"tickformat": "~s", "nticks": 6, "rangemode": "tozero"}, 1.0
    shape = {"type": "log", "dtick": 1} if log_x else {"nticks": 6, "rangemode": "tozero"}
    return axis("sent per island (bytes)") | {"tickformat": "~s", "ticksuffix": "B"} | shape, 1.0


def _wide_apart(columns: Sequence[Sequence[float]]) -> bool:
    """Whether the runs' totals differ so much that the cheaper ones would be a line on the axis."""
    totals = [max(column) for column in columns if column and max(column) > 0]
    return len(totals) > 1 and max(totals) >= _LOG_RATIO * min(totals)


def _explodes(columns: Sequence[Sequence[float]]) -> bool:
    """Whether a divergence would flatten everything else on a linear axis."""
    values = [value for column in columns for value in column]
    return bool(values) and min(values) > 0 and max(values) > 20 * median(values)


def _trace(
    curve: Curve, cost: Cost, divisor: float, index: int, name: str | None, log_x: bool, limit: int
) -> dict[str, Any]:
    """One line; `name` None makes it a faint background line without hover."""
    x, y = _per_cost([value / divisor for value in getattr(curve, cost)], curve.y, cost)
    if log_x:
        kept = [i for i, value in enumerate(x) if value > 0]
        x, y = [x[i] for i in kept], [y[i] for i in kept]
    shown = thin(y, limit)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if name is not None and len(shown) <= 40 else "lines",
        "x": rounded([x[i] for i in shown]),
        "y": rounded([y[i] for i in shown]),
        "line": {
            "color": colour(index),
            "width": 2 if name is not None else 1,
            "dash": _DASHES[index // RUN_COLOURS % len(_DASHES)],
        },
        "marker": {"size": 4, "color": colour(index)},
    }
    if name is None:
        return trace | {"opacity": 0.3, "hoverinfo": "skip"}
    x_format = {"tokens": "%{x:.3s} tokens", "sent_bytes": "%{x:.3s}B", "time_s": "%{x:.3~f}"}[cost]
    return trace | {
        "name": plot_label(name),
        "hovertemplate": f"%{{y:.4f}}<br>{x_format}<extra>%{{fullData.name}}</extra>",
    }


def _per_cost(x: list[float], y: list[float], cost: Cost) -> tuple[list[float], list[float]]:
    """Against bytes, average the points between two syncs: they cost the same and would stack up."""
    if cost != "sent_bytes":
        return x, y
    groups: dict[float, list[float]] = {}
    for at, value in zip(x, y, strict=True):
        groups.setdefault(at, []).append(value)
    return list(groups), [sum(values) / len(values) for values in groups.values()]
