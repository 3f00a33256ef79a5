"""Says of each client what a federation was worth to it: its losses side by side, and one line of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lowcomm.report.units import format_decimal

MODELS = {
    "before": "before",
    "after": "federated",
    "own": "federated, its own",
    "local": "alone",
    "centralised": "pooled",
}
"""Columns of clients.json in the order of tables, and how people call them."""
MEANING = (
    "before: the untuned model; federated: the global model, or the client's own where it keeps one; alone: tuned on "
    "the client's text only, as many steps; pooled: on all text in one place"
)
ALIKE = 0.002
"""Part of a loss below which two are called alike: less than another seed changes."""
SHOWN = 20
"""Clients whose lines a terminal gets."""


def shown_columns(columns: Mapping[str, Sequence[float]]) -> list[str]:
    """Those that are there; a client's own model only where it is not the global one."""
    same = columns.get("own") == columns.get("after")
    return [key for key in MODELS if key in columns and not (key == "own" and same)]


def verdict(columns: Mapping[str, Sequence[float]], client: int) -> str:
    """One client's line: against training alone where that was measured, else against the untuned model."""
    kept = columns.get("own") or columns.get("after")
    if kept is None:
        return ""
    loss, said = kept[client], "better off in the federation"
    for key, against in (("local", "alone"), ("before", "before")):
        if key not in columns:
            continue
        other = columns[key][client]
        by = f"by {abs(other - loss):.4f}, {abs(other - loss) / other:.1%}" if other > 0 else "by nothing"
        if abs(other - loss) <= ALIKE * other:
            return f"as good {against} as in the federation"
        if loss > other:
            return f"would have done better {against} ({by})" if key == "local" else f"did better untuned ({by})"
        more = "" if key == "local" else "; alone was not measured (--eval.baselines)"
        return f"{said} than {against} ({by}){more}"
    return ""


def client_lines(names: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """A plain table for a terminal: heads, one line a client with its verdict, the mean."""
    shown = shown_columns(columns)
    heads = [MODELS[key] for key in shown]
    rows = [[format_decimal(columns[key][i], 4) for key in shown] for i in range(len(names))]
    means = [format_decimal(sum(columns[key]) / max(1, len(columns[key])), 4) for key in shown]
    first = max(map(len, ["client", "mean", *names[:SHOWN]]))
    widths = [max(map(len, column)) for column in zip(heads, means, *rows, strict=True)]

    def line(name: str, cells: Sequence[str], last: str = "") -> str:
        padded = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return f"{name:<{first}}  {padded}  {last}".rstrip()

    yield line("client", heads, "held-out loss in nats per token; lower is better")
    for i, name in enumerate(names[:SHOWN]):
        yield line(name, rows[i], verdict(columns, i))
    if len(names) > SHOWN:
        yield f"... {len(names) - SHOWN} more clients in clients.json and the report"
    yield line("mean", means)
