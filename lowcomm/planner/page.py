"""The plan as a page: utilisation against the speed of the link, drawn by plotly, readable offline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowcomm.plan.choose import Option
from lowcomm.plan.runtime import predict
from lowcomm.planner.command import Plan
from lowcomm.planner.launch import machine_lines
from lowcomm.planner.text import alternatives_table, data_parallel, summary_lines
from lowcomm.report.figures import Figure, axis, colour, layout, rounded
from lowcomm.report.html import document, load_plotly_js, plot_panel, write_page
from lowcomm.report.sections import text

POINTS = 41
"""Of a curve, evenly in the logarithm over four decades around the link."""
CURVES = 5


def write_plan_page(plan: Plan, target: Path) -> Path:
    """Write the page. Raises ConfigError where it can't be written or plotly is missing."""
    plotly_js = load_plotly_js()
    figures = {"utilisation": utilisation_figure(plan), "penalty": penalty_figure(plan)}
    lines = "".join(f"<p>{text(line)}</p>" for line in [*summary_lines(plan), *machine_lines(plan)])
    plots = "".join(plot_panel(figure, identity, "curve") for identity, figure in figures.items())
    body = (
        f'<header><h1>Plan</h1><div class="panel tile">{lines}</div></header><h2>Alternatives</h2>{_table(plan)}'
        f'<h2>Link</h2><div class="plots">{plots}</div><footer>Written by lowcomm plan. Predicted.</footer>'
    )
    write_page(target, document("plan", body, figures, plotly_js))
    return target


def shown(plan: Plan) -> list[Option]:
    """The best of the kinds, and data-parallel."""
    return [*plan.choice.alternatives[:CURVES], data_parallel(plan)]


def utilisation_figure(plan: Plan) -> Figure:
    """One line per method, with its settings kept, over the speed of the link."""
    rate = plan.link.rate_bytes_per_s
    rates = [rate * 10 ** (4 * i / (POINTS - 1) - 2) for i in range(POINTS)]
    traces = []
    for index, option in enumerate(shown(plan)):
        links = [replace(plan.link, rate_bytes_per_s=r) for r in rates]
        y = [predict(plan.job, link, option.prediction.settings).utilisation for link in links]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": option.label,
                "x": rounded([r / 125e3 for r in rates]),
                "y": rounded([100 * u for u in y]),
                "line": {"color": colour(index), "width": 2},
                "hovertemplate": "%{y:.1f} % at %{x:.3s} Mbit/s<extra>%{fullData.name}</extra>",
            }
        )
    look = layout(axis("link (Mbit/s)") | {"type": "log"}, axis("utilisation (%)") | {"range": [0, 101]})
    spec = {"data": traces, "layout": look | {"showlegend": True, "legend": {"orientation": "h", "y": -0.3}}}
    caption = f"each with its settings of the table; round trip {1000 * plan.link.rtt_s:g} ms"
    return Figure(title="Utilisation against bandwidth", caption=caption, spec=spec, empty=False)


def penalty_figure(plan: Plan) -> Figure:
    """Loss against utilisation at the given link: one point per method."""
    traces = []
    for index, option in enumerate(shown(plan)):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": option.label,
                "x": rounded([100 * option.prediction.utilisation]),
                "y": rounded([100 * option.penalty]),
                "marker": {"color": colour(index), "size": 10},
                "hovertemplate": "%{y:+.2f} % loss, %{x:.1f} %<extra>%{fullData.name}</extra>",
            }
        )
    spec = {"data": traces, "layout": layout(axis("utilisation (%)"), axis("loss against data-parallel (%)"))}
    return Figure(title="Loss against utilisation", caption="colours as on the left", spec=spec, empty=False)


def _table(plan: Plan) -> str:
    """The terminal's table in HTML."""
    table = alternatives_table(plan)
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    head = "".join(f"<th>{text(column.header)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in zip(*columns, strict=True)
    )
    return f'<div class="panel scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
