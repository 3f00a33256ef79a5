"""What a federated run was worth to each client: losses on their own held-out text, from clients.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowcomm.report.figures import Figure, axis, colour, layout, plot_label, rounded
from lowcomm.report.load import Run, number
from lowcomm.report.sections import table, tag, text
from lowcomm.report.units import format_decimal
from lowcomm.report.verdict import MEANING, MODELS, shown_columns, verdict

_ROWS_SHOWN = 200


def losses_of(run: Run) -> dict[str, list[float]]:
    """Nats per token by column, one number per client; columns that are torn are left out."""
    columns = run.clients.get("clients")
    found: dict[str, list[float]] = {}
    for key in MODELS:
        values = columns.get(key) if isinstance(columns, dict) else None
        losses = [number(v) for v in values] if isinstance(values, list) else []
        if losses and None not in losses:
            found[key] = [v for v in losses if v is not None]
    return {key: found[key] for key in shown_columns(found)}


def names_of(run: Run) -> list[str]:
    """Of the clients; numbers where clients.json has no names for all."""
    count = len(next(iter(losses_of(run).values()), []))
    names = run.clients.get("names")
    if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names):
        return names
    return [str(k) for k in range(count)]


def verdict_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """One row per client: its loss under each model, and what the federation was worth to it in words."""
    rows: list[str] = []
    several = len(runs) > 1
    keys = [key for key in MODELS if any(key in losses_of(run) for run in runs)]
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        losses = losses_of(run)
        first = f'<td class="name">{tag(index, name)}</td>' if several else ""
        for i, client in enumerate(names_of(run)[:_ROWS_SHOWN]):
            best = min((losses[key][i] for key in losses), default=None)
            cells = "".join(
                f'<td class="n{" best" if key in losses and losses[key][i] == best else ""}">'
                f"{format_decimal(losses[key][i] if key in losses else None, 4)}</td>"
                for key in keys
            )
            rows.append(f"<tr>{first}<td>{text(client)}</td>{cells}<td>{text(verdict(losses, i))}</td></tr>")
    if not rows:
        return ""
    left = ["Run", "Client"] if several else ["Client"]
    heads = [text(MODELS[key].capitalize()) for key in keys]
    hint = f'<p class="hint">Nats per token on each client\'s own held-out text; {text(MEANING)}.</p>'
    return hint + table(left, heads, rows, "tall", last=["Verdict"])


def client_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """One figure for each run whose clients were evaluated."""
    several = len(runs) > 1
    found = [(losses_of(run), names_of(run), name) for run, name in zip(runs, names, strict=True)]
    return [_figure(losses, clients, name if several else None) for losses, clients, name in found if losses]


def _figure(losses: dict[str, list[float]], clients: Sequence[str], name: str | None) -> Figure:
    changed = "before" in losses and len(losses) > 1
    start = losses["before"] if changed else [0.0] * len(next(iter(losses.values())))
    tuned = {key: values for key, values in losses.items() if key != "before" or not changed}
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": MODELS[key],
            "x": [plot_label(client) for client in clients],
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
    def moment(name: str) -> Any:
        column = run.clients.get(name)
        return column.get(key) if isinstance(column, dict) else None

    at = moment("percentiles")
    percentiles = [number(at.get(p)) if isinstance(at, dict) else None for p in ("p10", "p50", "p90")]
    return [number(moment("mean")), *percentiles, number(moment("worst_10pct")), number(moment("spread"))]
