"""Members of a run over a store: how many there were in each version, how late contributions came, what it all cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowcomm.report.figures import Figure, axis, colour, layout, rounded, time_unit
from lowcomm.report.load import Event, Run, number
from lowcomm.report.sections import table, tag, text
from lowcomm.report.units import DASH, format_bytes, format_count

EVENT = "version"


def versions_of(run: Run) -> list[Event]:
    """The versions that a member applied, in order; none of a run between fixed islands."""
    return [e for e in run.of(EVENT) if number(e.get("time_s")) is not None and number(e.get("version")) is not None]


def member_figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """Members and contributions, staleness, and waiting, against wall-clock, for each run over a store."""
    several, found = len(runs) > 1, list[Figure]()
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        if versions := versions_of(run):
            of = f": {name}" if several else ""
            found += [_people(versions, index, of), _lateness(versions, index, of)]
    return found


def _people(versions: Sequence[Event], index: int, of: str) -> Figure:
    lines = [("members", "members", "hv", "solid"), ("contributions", "contributions used", "hv", "dot")]
    caption = "as this member applied them; a step up is somebody who joined"
    return _figure(f"Members over time{of}", caption, versions, lines, index, "islands")


def _lateness(versions: Sequence[Event], index: int, of: str) -> Figure:
    lines = [
        ("waited_s", "waited by the committer (s)", "hv", "solid"),
        ("staleness", "largest staleness", "hv", "dot"),
    ]
    caption = "seconds from the first contribution to the commit; staleness in outer steps"
    return _figure(f"Waiting and staleness{of}", caption, versions, lines, index, "s, steps")


def _figure(
    title: str,
    caption: str,
    versions: Sequence[Event],
    lines: Sequence[tuple[str, str, str, str]],
    index: int,
    unit: str,
) -> Figure:
    scale, seconds = time_unit(max(number(e["time_s"]) or 0.0 for e in versions))
    data: list[dict[str, Any]] = []
    for key, label, shape, dash in lines:
        points = [(e["time_s"] / scale, y, e["version"]) for e in versions if (y := number(e.get(key))) is not None]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": rounded([x for x, _, _ in points]),
                "y": rounded([y for _, y, _ in points]),
                "customdata": [v for _, _, v in points],
                "line": {"color": colour(index + len(data)), "shape": shape, "dash": dash, "width": 1.5},
                "marker": {"size": 4},
                "hovertemplate": "version %{customdata}: %{y}<extra>%{fullData.name}</extra>",
            }
        )
    spec = layout(axis(f"wall-clock ({seconds})"), axis(unit) | {"rangemode": "tozero"})
    spec |= {"height": 260, "showlegend": True, "legend": {"orientation": "h", "font": {"size": 11}, "y": 1.15}}
    return Figure(title=title, caption=caption, spec={"data": data, "layout": spec}, empty=not versions)


def member_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What each member's process counted; empty where no run is over a store."""
    rows: list[str] = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        facts = run.summary.get("store")
        if not isinstance(facts, dict):
            continue
        late = facts.get("late")
        names_late = ", ".join(f"{k} {v}x" for k, v in late.items()) if isinstance(late, dict) and late else DASH
        requests = sum(int(number(facts.get(k)) or 0) for k in ("puts", "gets", "lists", "deletes"))
        cells = [format_count(number(facts.get(k))) for k in ("version", "contributions", "worst_staleness")]
        cells += [format_count(requests), format_bytes(number(facts.get("up_bytes")))]
        cells += [format_bytes(number(facts.get("down_bytes")))]
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        who = f"{text(facts.get('name'))} ({text(str(facts.get('incarnation'))[:6])})"
        first = f'<td class="name">{tag(index, name)}</td>' if len(runs) > 1 else ""
        rows.append(f"<tr>{first}<td>{who}</td>{numbers}<td>{text(names_late)}</td></tr>")
    if not rows:
        return ""
    left = ["Run", "Member"] if len(runs) > 1 else ["Member"]
    right = ["Version", "Own contributions used", "Worst staleness", "Requests", "Put", "Got"]
    return table(left, right, rows, last=["Commits without"])
