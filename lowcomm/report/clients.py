"""What a federated run was worth to each client: losses on their own held-out text, from clients.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowcomm.report.figures import Figure, axis, colour, layout, rounded
from lowcomm.report.load import Run, number
from lowcomm.report.sections import table, tag, text
from lowcomm.report.units import format_decimal

MODELS = {
    "before": "before",
    "local": "tuned alone",
    "centralised": "tuned on all text together",
    "after": "global model",
    "own": "own model",
}
"""Columns of clients.json in the order of the legend."""


def losses_of(run: Run) -> dict[str, list[float]]:
    """Nats per token by column, one number per client; columns that are torn are left out."""
    columns = run.clients.get("clients")
    found: dict[str, list[float]] = {}
    for key in MODELS:
        values = columns.get(key) if isinstance(columns, dict) else None
        losses = [number(v) for v in values] if isinstance(values, list) else []
        if losses and None not in losses:
            found[key] = [v for v in losses if v is not None]
    if found.get("own") == found.get("after"):
        found.pop("own", None)  # no client keeps anything to itself
    return found


def client_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """One figure for each run whose clients were evaluated."""
    several = len(runs) > 1
    found = [(losses_of(run), name) for run, name in zip(runs, names, strict=True)]
    return [_figure(losses, name if several else None) for losses, name in found if losses]


def _figure(losses: dict[str, list[float]], name: str | None) -> Figure:
    changed = "before" in losses and len(losses) > 1
    start = losses["before"] if changed else [0.0] * len(next(iter(losses.values())))
    tuned = {key: values for key, values in losses.items() if key != "before" or not changed}
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": MODELS[key],
            "x": [str(k) for k in range(len(values))],
            "y": rounded([v - s for v, s in zip(values, start, strict=True)]),
            "marker": {"color": colour(i), "line": {"width": 0}},
            "hovertemplate": "client %{x}: %{y}<extra>%{fullData.name}</extra>",
        }
        for i, (key, values) in enumerate(tuned.items())
    ]
    spec = layout(axis("client") | {"type": "category"}, axis("nats per token"))
    spec |= {"height": 300, "showlegend": True, "barmode": "group", "bargap": 0.3}
    spec["legend"] = {"orientation": "v", "traceorder": "normal", "font": {"size": 11}}
    what = "Change of loss" if changed else "Loss"
    return Figure(
        title=f"{what} on each client's own text" + (f": {name}" if name else ""),
        caption="held-out text, at the end" + ("; below 0: better than the untuned model" if changed else ""),
        spec={"data": data, "layout": spec},
        empty=False,
    )


def loss_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Mean, percentiles, the worst tenth and the spread, by model; empty where no client was evaluated."""
    rows: list[str] = []
    several = len(runs) > 1
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        first = f'<td class="name">{tag(index, name)}</td>' if several else ""
        for key in losses_of(run):
            cells = "".join(f'<td class="n">{format_decimal(value)}</td>' for value in _statistics(run, key))
            rows.append(f"<tr>{first}<td>{text(MODELS[key])}</td>{cells}</tr>")
    if not rows:
        return ""
    left = ["Run", "Model"] if several else ["Model"]
    right = ["Mean (nats/token)", "10th percentile", "Median", "90th percentile", "Worst tenth", "Spread"]
    return table(left, right, rows)


def _statistics(run: Run, key: str) -> list[float | None]:
    def told(name: str) -> Any:
        column = run.clients.get(name)
        return column.get(key) if isinstance(column, dict) else None

    at = told("percentiles")
    percentiles = [number(at.get(p)) if isinstance(at, dict) else None for p in ("p10", "p50", "p90")]
    return [number(told("mean")), *percentiles, number(told("worst_10pct")), number(told("spread"))]
