"""What a page shows of a run: its state, numbers, curves and timeline, made by the report's own functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lowcomm.report import sections
from lowcomm.report.figures import Figure, axis, colour, curve_figures, layout, rounded, time_unit
from lowcomm.report.load import Run, load_run, number
from lowcomm.report.series import POINTS_PER_TRACE, headline, thin
from lowcomm.report.timeline import timeline_figures
from lowcomm.report.units import format_bytes, format_count, format_decimal, format_seconds
from lowcomm.types import ConfigError
from lowcomm.ui.trainings import Trainings, console_tail

GOING_ON = "running"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brief:
    """One line of the list of runs; texts for people."""

    name: str
    status: str
    alive: bool
    quality: str = ""
    tokens: str = ""
    sent: str = ""
    wall: str = ""
    steps: str = ""
    problem: str = ""
    """Why its files can't be read."""


def look(directory: Path, trainings: Trainings) -> tuple[Run, bool]:
    """The run with its true state, and whether it goes on. Raises ConfigError where its files can't be read."""
    alive = trainings.alive(directory)
    run = load_run(directory)
    ended = "interrupted" if run.status == GOING_ON else run.status
    return dataclasses.replace(run, status=GOING_ON if alive else ended), alive


def brief(directory: Path, trainings: Trainings) -> Brief:
    """Its line."""
    try:
        run, alive = look(directory, trainings)
    except ConfigError as error:
        going_on = trainings.alive(directory)
        return Brief(
            name=directory.name, status="starting" if going_on else "unreadable", alive=going_on,
            problem="" if going_on else str(error),
        )  # fmt: skip
    facts = headline(run)
    quality = facts.val_bpb if facts.val_bpb is not None else facts.val_loss
    return Brief(
        name=directory.name,
        status=run.status,
        alive=alive,
        quality=format_decimal(quality),
        tokens=format_count(facts.tokens),
        sent=format_bytes(facts.sent_bytes),
        wall=format_seconds(facts.wall_s),
        steps="{}/{}".format(*steps_of(run)),
    )


def steps_of(run: Run) -> tuple[int, int]:
    """Inner steps done, and of the whole run."""
    done = max((int(number(e.get("step")) or 0) for e in run.events), default=0)
    return done, int(number(run.config.get("steps")) or 0)


def figures_of(run: Run) -> dict[str, Figure]:
    """Loss, bytes and the timeline, by the identity of their place on the page."""
    validation, training = curve_figures([run], [run.name])[:3], curve_figures([run], [run.name])[3:]
    shown = [training[0], training[2], bytes_figure(run), *validation]
    figures = {f"curve-{i}": figure for i, figure in enumerate(shown)}
    return figures | {"timeline-0": timeline_figures([run], ["Timeline"])[0]}


def bytes_figure(run: Run) -> Figure:
    """Bytes sent and received so far against wall-clock: the mean over the islands, a point at each sync."""
    rounds: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for event in run.of("sync"):
        key = (int(number(event.get("round")) or 0), int(number(event.get("step")) or 0))
        values = [number(event.get(name)) or 0.0 for name in ("time_s", "bytes_sent", "bytes_received")]
        rounds.setdefault(key, []).append((values[0], values[1], values[2]))
    points = [tuple(fmean(column) for column in zip(*found, strict=True)) for _, found in sorted(rounds.items())]
    times_s = [point[0] for point in points]
    divisor, unit = time_unit(max(times_s, default=0.0))
    traces: list[dict[str, Any]] = []
    for index, name in ((2, "received"), (1, "sent")):  # they are often equal: the second is drawn over the first
        kept = thin([point[index] for point in points], POINTS_PER_TRACE)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": rounded([times_s[i] / divisor for i in kept]),
                "y": rounded([points[i][index] for i in kept]),
                "line": {"color": colour(index - 1), "width": 2 if index == 1 else 6},
                "opacity": 1.0 if index == 1 else 0.4,
                "hovertemplate": "%{y:.3s}B<extra>%{fullData.name}</extra>",
            }
        )
    yaxis = axis("bytes per island") | {"tickformat": "~s", "ticksuffix": "B", "rangemode": "tozero", "nticks": 7}
    xaxis = axis(f"wall-clock ({unit})") | {"nticks": 6, "rangemode": "tozero"}
    spec = {"data": traces, "layout": layout(xaxis, yaxis)}
    caption = "thin: sent, wide: received; mean over the islands"
    return Figure(title="Bytes against wall-clock", caption=caption, spec=spec, empty=not points)


def live_parts(directory: Path, trainings: Trainings) -> dict[str, Any]:
    """Everything of a run's page that changes while it goes on; HTML is escaped. JSON-able."""
    console = console_tail(directory) or trainings.refused.get(directory.name, "")
    try:
        run, alive = look(directory, trainings)
    except ConfigError as error:
        alive = trainings.alive(directory)
        if alive:
            status, said = "starting", "The processes start; the first numbers come with the first steps."
        elif directory.name in trainings.refused:
            status, said = "refused", console.rpartition("\n")[2]
        else:
            status, said = "unreadable", str(error)
        return {"status": status, "alive": alive, "console": console, "said": said}
    done, steps = steps_of(run)
    return {
        "status": run.status,
        "alive": alive,
        "done": done,
        "steps": steps,
        "html": {
            "tiles": sections.tiles(run),
            "warnings": sections.warning_list([run], [run.name]),
            "islands": sections.island_table([run], [run.name]),
            "notes": sections.notes([run], [run.name]),
        },
        "figures": {i: None if f.empty else f.spec for i, f in figures_of(run).items()},
        "captions": {i: f.caption for i, f in figures_of(run).items()},
        "console": console,
        "said": "",
    }


def several(directories: Sequence[Path], trainings: Trainings) -> list[Run]:
    """Runs to compare. Raises ConfigError for one that can't be read."""
    return [look(directory, trainings)[0] for directory in directories]
