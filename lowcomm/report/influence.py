"""Influence as a heat map: whose Deltas have lowered whose held-out loss, from influence.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowcomm.report.figures import Figure, axis, layout
from lowcomm.report.load import Run, number

Table = list[list[float]]


def influence_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """One figure for each run that has measured it."""
    found = [(name, tables_of(run)) for run, name in zip(runs, names, strict=True)]
    return [_figure(tables, name if len(runs) > 1 else None) for name, tables in found if tables]


def tables_of(run: Run) -> list[Table]:
    """The tables of influence.json, square ones of finite numbers only."""
    rounds = run.influence.get("rounds")
    rows: list[Any] = rounds if isinstance(rounds, list) else []
    return [row["influence"] for row in rows if isinstance(row, dict) and _is_square(row.get("influence"))]


def _is_square(table: Any) -> bool:
    rows = table if isinstance(table, list) else []
    return bool(rows) and all(
        isinstance(row, list) and len(row) == len(rows) and all(number(x) is not None for x in row) for row in rows
    )


def harmful(table: Table) -> list[int]:
    """Islands whose Deltas raise the loss of most others."""
    return [k for k, row in enumerate(table) if sum(x < 0 for j, x in enumerate(row) if j != k) > (len(table) - 1) / 2]


def _figure(tables: Sequence[Table], name: str | None) -> Figure:
    size = len(tables[-1])
    same = [t for t in tables if len(t) == size]
    mean = [[sum(t[k][j] for t in same) / len(same) for j in range(size)] for k in range(size)]
    most = max((abs(x) for row in mean for x in row), default=0.0) or 1.0
    islands = [str(k) for k in range(size)]
    data = [
        {
            "type": "heatmap",
            "x": islands,
            "y": islands,
            "z": [[float(f"{x:.4g}") for x in row] for row in mean],
            "zmin": -most,
            "zmax": most,
            "colorscale": "RdBu",
            "hovertemplate": "island %{y} on the held-out text of %{x}: %{z}<extra></extra>",
        }
    ]
    bad = harmful(mean)
    caption = f"mean of {len(same)} rounds, nats; blue: the row's Delta lowers the column's held-out loss"
    caption += f"; islands {', '.join(map(str, bad))} raise that of most others" if bad else ""
    spec = {"data": data, "layout": layout(axis("held-out text of island"), axis("Delta of island")) | {"height": 420}}
    return Figure(
        title="Influence between islands" + (f": {name}" if name else ""), caption=caption, spec=spec, empty=False
    )
