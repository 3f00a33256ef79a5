"""What links gave, what runs needed of them, and how well runs of each method used their processors on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowcomm.report.figures import Figure, axis, colour, layout, plot_label, rounded
from lowcomm.report.load import Run, number
from lowcomm.report.method import method_of
from lowcomm.report.series import headline


@dataclass(frozen=True, kw_only=True)
class LinkUse:
    """None where nothing was recorded."""

    peak_bytes_per_s: float | None
    """Rate that the link needs so that no exchange is late; None where training waits for each, or in a simulation."""
    link_bytes_per_s: float | None
    """Measured while large exchanges were sent, on the slowest island."""
    misses: int
    """Exchanges that came after their deadline, over all islands."""
    waited_s: float
    """Seconds that training waited for them: the mean per island in a summary, else the sum."""


def link_use(run: Run) -> LinkUse:
    """From the summary where it exists, else from the events so far."""
    late = run.of("deadline")
    misses, waited_s = (number(run.summary.get(key)) for key in ("deadline_misses", "deadline_waited_s"))
    peak = number(run.summary.get("peak_bytes_per_s"))
    needed = [rate for event in run.of("sync") if (rate := number(event.get("needed_bytes_per_s"))) is not None]
    return LinkUse(
        peak_bytes_per_s=max(needed, default=None) if peak is None else peak,
        link_bytes_per_s=number(run.summary.get("link_bytes_per_s")),
        misses=len(late) if misses is None else int(misses),
        waited_s=sum(number(e.get("waited_s")) or 0.0 for e in late) if waited_s is None else waited_s,
    )


def bandwidth_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """Utilisation against the measured rate of the link, a line per method; none for a single run."""
    points: dict[str, list[tuple[float, float, int]]] = {}
    for index, run in enumerate(runs):
        rate, share = link_use(run).link_bytes_per_s, headline(run).utilisation
        if rate and share is not None:
            points.setdefault(method_of(run).key, []).append((rate * 8, share, index))
    if len(runs) < 2 or not points:
        return []
    labels = [method_of(runs[found[0][2]]).label for found in points.values()]
    traces = []
    for label, found in zip(labels, points.values(), strict=True):
        unique = label if labels.count(label) == 1 else f"{label}: {names[found[0][2]]}"
        traces.append(_line(unique, sorted(found), names))
    left_out = len(runs) - sum(len(found) for found in points.values())
    notes = ["rate as measured while sending, on the slowest island"]
    notes += [f"left out, with no measured link: {left_out}"] if left_out else []
    rates = [rate for found in points.values() for rate, _, _ in found]
    xaxis = axis("link (bit/s)") | {"type": "log", "tickformat": "~s"}
    xaxis |= {"dtick": 1} if max(rates) >= 10 * min(rates) else {"nticks": 4}
    yaxis = axis("utilisation") | {"tickformat": ".0%", "range": [0, 1.05], "nticks": 6}
    look = layout(xaxis, yaxis) | {"showlegend": True}
    look["legend"] = {"orientation": "h", "y": -0.25, "font": {"size": 11}}
    spec = {"data": traces, "layout": look}
    return [Figure(title="Utilisation against bandwidth", caption="; ".join(notes), spec=spec, empty=False)]


def _line(label: str, found: Sequence[tuple[float, float, int]], names: Sequence[str]) -> dict[str, Any]:
    shade = colour(found[0][2])
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_label(label),
        "x": rounded([rate for rate, _, _ in found]),
        "y": rounded([share for _, share, _ in found]),
        "line": {"color": shade, "width": 2},
        "marker": {"color": shade, "size": 7},
        "hovertext": [plot_label(names[index]) for _, _, index in found],
        "hovertemplate": "%{hovertext}<br>%{y:.1%} at %{x:.3s}bit/s<extra></extra>",
    }
