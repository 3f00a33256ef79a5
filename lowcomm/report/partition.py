"""Who had which rows: one stacked bar per client, and a table, from partition.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowcomm.report.figures import RUN_COLOURS, Figure, axis, colour, layout, plot_label
from lowcomm.report.load import Run, number
from lowcomm.report.sections import table, tag, text
from lowcomm.report.units import format_bytes, format_count, format_share

_ROWS_SHOWN = 200
_OTHER = "other labels"


def partition_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """One figure for each run that has clients."""
    return [
        _figure(run, name if len(runs) > 1 else None) for run, name in zip(runs, names, strict=True) if clients_of(run)
    ]


def clients_of(run: Run) -> list[dict[str, Any]]:
    """The clients of partition.json; entries that are no objects are left out."""
    clients = run.partition.get("clients")
    return [c for c in clients if isinstance(c, dict)] if isinstance(clients, list) else []


def _rows(client: dict[str, Any], side: str) -> dict[str, float]:
    labels = client.get(f"{side}_labels")
    return {str(k): number(v) or 0.0 for k, v in labels.items()} if isinstance(labels, dict) else {}


def _figure(run: Run, name: str | None) -> Figure:
    clients = clients_of(run)
    totals: dict[str, float] = {}
    for client in clients:
        for label, rows in _rows(client, "train").items():
            totals[label] = totals.get(label, 0.0) + rows
    shown = sorted(totals, key=lambda label: (-totals[label], label))
    rest = shown[RUN_COLOURS - 1 :] if len(shown) > RUN_COLOURS else []
    shown = sorted(label for label in shown if label not in rest)
    x = [f"{text(c.get('client'))}" for c in clients]
    data = [
        _bars(x, [_rows(c, "train").get(label, 0.0) for c in clients], label, colour(i))
        for i, label in enumerate(shown)
    ]
    if rest:
        others = [sum(_rows(c, "train").get(label, 0.0) for label in rest) for c in clients]
        data.append(_bars(x, others, f"{_OTHER} ({len(rest)})", "--axis"))
    spec = layout(axis("client") | {"type": "category"}, axis("training rows") | {"rangemode": "tozero", "nticks": 6})
    spec |= {"barmode": "stack", "bargap": 0.25, "height": 300, "showlegend": len(data) > 1}
    spec["legend"] = {"orientation": "v", "traceorder": "normal", "font": {"size": 11}}
    removed = number(run.partition.get("duplicates_removed")) or 0
    caption = f"{run.partition.get('partition')}; labels by colour"
    caption += f"; {removed:.0f} equal texts were left out before the split" if removed else ""
    return Figure(
        title="Training rows of each client" + (f": {name}" if name else ""),
        caption=caption,
        spec={"data": data, "layout": spec},
        empty=not totals,
    )


def _bars(x: list[str], y: list[float], label: str, fill: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": plot_label(label),
        "x": x,
        "y": y,
        "marker": {"color": fill, "line": {"width": 0}},
        "hovertemplate": "client %{x}: %{y} rows<extra>%{fullData.name}</extra>",
    }


def client_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Sizes of every client; empty where no run has clients."""
    rows: list[str] = []
    several = len(runs) > 1
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for client in clients_of(run)[:_ROWS_SHOWN]:
            labels = _rows(client, "train")
            total = sum(labels.values())
            top = max(labels, key=lambda k: (labels[k], k)) if labels else None
            first = f'<td class="name">{tag(index, name)}</td>' if several else ""
            answers = number(client.get("train_answer_tokens"))
            cells = [
                format_count(number(client.get("train_rows"))),
                format_count(number(client.get("validation_rows"))),
                format_bytes(number(client.get("train_bytes"))),
                format_count(number(client.get("train_tokens"))),
                format_count(answers),
                format_count(float(len(labels))),
            ]
            share = f"{text(top)}, {format_share(labels[top] / total)}" if top is not None and total else ""
            numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
            rows.append(f"<tr>{first}<td>{text(client.get('client'))}</td>{numbers}<td>{share}</td></tr>")
    if not rows:
        return ""
    left = ["Run", "Client"] if several else ["Client"]
    right = ["Training rows", "Held-out rows", "Training text", "Tokens", "Learnt tokens", "Labels"]
    return table(left, right, rows, "tall", ["Most frequent label"])
