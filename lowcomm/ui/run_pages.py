"""Pages of runs: the list, one run while it goes on, several side by side, reports; stop and resume."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from lowcomm.report import sections
from lowcomm.report.figures import Figure, curve_figures
from lowcomm.report.html import embedded_json, load_plotly_js, page_of, plot_panel
from lowcomm.report.load import Run, load_run
from lowcomm.report.series import labels
from lowcomm.report.timeline import timeline_figures
from lowcomm.types import ConfigError
from lowcomm.ui.desk import Desk, desk_of, sent
from lowcomm.ui.form_pages import form_url, page_values, run_url
from lowcomm.ui.look import Brief, brief, several
from lowcomm.ui.stream import events
from lowcomm.ui.templates import render

KNOWN = ("done", "running", "stopped", "failed", "starting", "interrupted", "unreadable")
"""Statuses with a colour of their own."""
TITLES = (
    "Training loss against tokens", "Training loss against wall-clock", "Bytes against wall-clock",
    "Validation against tokens", "Validation against bytes sent", "Validation against wall-clock",
)  # fmt: skip
STRANGER = {
    "content-security-policy": "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; frame-ancestors 'none'",
    "cross-origin-opener-policy": "unsafe-none",  # browsers load nothing that has another and is in a sandbox
}
"""Headers of a report: its scripts run as those of a stranger, who can't ask the pages for anything."""


def home(request: Request) -> Response:
    """All runs, and what to do next."""
    values = page_values(desk_of(request), "Runs", "runs", ["common.js", "home.js"])
    return HTMLResponse(render("home", {**values, **_table(desk_of(request))}))


def table(request: Request) -> Response:
    """The list alone, for a page that is open."""
    desk = desk_of(request)
    return HTMLResponse(render("run-table", {"base": desk.base, "root": str(desk.root), **_table(desk)}))


def _table(desk: Desk) -> dict[str, object]:
    starting = [Brief(name=name, status="starting", alive=True) for name in desk.trainings.beginning()]
    listed = [brief(desk.root / name, desk.trainings) for name in desk.runs.names()]
    return {"briefs": [*starting, *listed], "known": KNOWN}


def run(request: Request) -> Response:
    """One run; what changes comes by `follow`."""
    desk, name = desk_of(request), request.path_params["name"]
    directory = desk.directory(name)
    values = page_values(desk, name, "runs", ["common.js", "plotly.js", "plot.js", "live.js"])
    more = {
        "name": name, "titles": TITLES, "place": _place, "key": Markup(sections.timeline_key(1)),
        "again": _again(desk, directory), "configuration": _configuration(directory),
    }  # fmt: skip
    return HTMLResponse(render("run", {**values, **more}))


def _place(identity: str, title: str, kind: str) -> Markup:
    """An empty plot that the script fills."""
    return Markup(
        '<figure class="panel {kind}"><h3>{title}</h3><div class="plot" id="{identity}" role="img" '
        'aria-label="{title}" hidden></div><div class="empty">Nothing logged yet.</div>'
        "<figcaption></figcaption></figure>"
    ).format(kind=kind, title=title, identity=identity)


def _configuration(directory: Path) -> Markup:
    try:
        run = load_run(directory)
    except ConfigError:
        return Markup("")
    return Markup("<h2>Configuration</h2>") + Markup(sections.configuration([run], [run.name]))


def _again(desk: Desk, directory: Path) -> str | None:
    """The address of a form with the same recipe and flags; None where the run does not say them."""
    from lowcomm.ui.resume import command_of, given_by

    try:
        _, reference, *flags = command_of(directory)
        given = {path: text for path, text in given_by(flags).items() if path != "name"}
        return form_url(desk, reference, given)
    except ConfigError:
        return None


def follow(request: Request) -> Response:
    """Server-sent events of one run."""
    desk = desk_of(request)
    stream = events(desk.directory(request.path_params["name"]), desk.trainings, desk.closing)
    return StreamingResponse(stream, media_type="text/event-stream")


async def stop(request: Request) -> Response:
    """Ask a run to save and leave."""
    await sent(request)
    desk = desk_of(request)
    await run_in_threadpool(lambda: desk.trainings.stop(desk.directory(request.path_params["name"])))
    return JSONResponse({"asked": True})


async def resume(request: Request) -> Response:
    """Continue a run with its own recipe and flags."""
    await sent(request)
    return await run_in_threadpool(_resume, desk_of(request), request.path_params["name"])


def _resume(desk: Desk, name: str) -> Response:
    from lowcomm.ui.resume import resume_command

    directory = desk.runs.directory(name)
    if desk.trainings.alive(directory):
        raise ConfigError(f"run {name} is going on already. Fix: stop it first")
    desk.trainings.start(directory, resume_command(directory))
    return JSONResponse({"url": run_url(desk, name)})


def _named(request: Request) -> list[Path]:
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if not names:
        raise ConfigError("no run is chosen. Fix: choose some in the list")
    return [desk_of(request).runs.directory(name) for name in names]


def report(request: Request) -> Response:
    """The report of one or several runs, made anew: a file in a run directory is never sent as a page."""
    runs = several(_named(request), desk_of(request).trainings)
    return HTMLResponse(page_of(runs, load_plotly_js()), headers=STRANGER)


def compare(request: Request) -> Response:
    """Several runs: overlaid curves, tables, timelines, differences."""
    directories = _named(request)
    runs = several(directories, desk_of(request).trainings)
    names = labels(runs)
    curves = {f"curve-{i}": figure for i, figure in enumerate(curve_figures(runs, names))}
    lines = {f"timeline-{i}": figure for i, figure in enumerate(timeline_figures(runs, names))}
    figures = {i: figure.spec for i, figure in {**curves, **lines}.items() if not figure.empty}
    values = page_values(desk_of(request), "Compare", "runs", ["common.js", "plotly.js", "plot.js", "compare.js"])
    query = "&".join(f"run={run_url(desk_of(request), d.name).rpartition('/')[2]}" for d in directories)
    more = {
        **_compared(runs, names), "names": names,
        "curves": _panels(curves, "curve"), "lines": _panels(lines, "timeline"),
        "figures": Markup(embedded_json(figures)), "report": f"{desk_of(request).base}report?{query}",
    }  # fmt: skip
    return HTMLResponse(render("compare", {**values, **more}))


def _compared(runs: list[Run], names: list[str]) -> dict[str, object]:
    made = {
        "table": sections.run_table(runs, names), "warnings": sections.warning_list(runs, names),
        "legend": sections.legend(names), "key": sections.timeline_key(len(runs)),
        "islands": sections.island_table(runs, names), "configuration": sections.configuration(runs, names),
    }  # fmt: skip
    return {name: Markup(html) for name, html in made.items()}


def _panels(figures: dict[str, Figure], kind: str) -> Markup:
    return Markup("".join(plot_panel(figure, identity, kind) for identity, figure in figures.items()))
