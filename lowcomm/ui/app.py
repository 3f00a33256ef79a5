"""The application: which address is which page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from lowcomm.report.html import load_plotly_js
from lowcomm.types import ConfigError, LowcommError
from lowcomm.ui import form_pages, run_pages
from lowcomm.ui.desk import Desk, desk_of
from lowcomm.ui.form_pages import page_values
from lowcomm.ui.guard import Guard, Keys
from lowcomm.ui.script import SCRIPTS
from lowcomm.ui.style import SHEET
from lowcomm.ui.templates import render

Page = Callable[[Request], Response | Awaitable[Response]]
ASSETS = {"cache-control": "private, max-age=3600"}


def guarded(desk: Desk, keys: Keys, used: Callable[[], None]) -> ASGIApp:
    """The pages behind their guard. used: called when a link was used."""
    return Guard(app=pages(desk), keys=keys, used=used)


def pages(desk: Desk) -> Starlette:
    """The pages alone, below `desk.base`."""
    routes = [
        _get("/", run_pages.home),
        _get("/table", run_pages.table),
        _get("/new", form_pages.new),
        _post("/check", form_pages.check),
        _post("/intent", form_pages.intent),
        _post("/start", form_pages.start),
        _get("/compare", run_pages.compare),
        _get("/report", run_pages.report),
        _get("/runs/{name}", run_pages.run),
        _get("/runs/{name}/events", run_pages.follow),
        _post("/runs/{name}/stop", run_pages.stop),
        _post("/runs/{name}/resume", run_pages.resume),
        _get("/assets/{asset}", asset),
    ]
    app = Starlette(routes=[Mount(desk.base.rstrip("/"), routes=routes)], exception_handlers={LowcommError: _refused})
    app.state.desk = desk
    return app


def _get(path: str, page: Page) -> Route:
    return Route(path, page, methods=["GET"])


def _post(path: str, page: Page) -> Route:
    return Route(path, page, methods=["POST"])


def asset(request: Request) -> Response:
    """The style sheet, a script or plotly.js."""
    name = request.path_params["asset"]
    if name == "ui.css":
        return Response(SHEET, media_type="text/css", headers=ASSETS)
    if name == "plotly.js":
        return Response(_plotly(), media_type="text/javascript", headers=ASSETS)
    if name not in SCRIPTS:
        raise ConfigError("there is no such file. Fix: reload the page")
    return Response(SCRIPTS[name], media_type="text/javascript", headers=ASSETS)


@cache
def _plotly() -> bytes:
    return load_plotly_js().encode()


def _refused(request: Request, error: Exception) -> Response:
    """Bad input: its one line, as JSON for a script and as a page for a reader."""
    message = " ".join(str(error).split())
    if request.method == "POST":
        return JSONResponse({"problem": message}, status_code=400)
    values = page_values(desk_of(request), "That did not work", "", ["common.js"])
    return HTMLResponse(render("failed", {**values, "message": message}), status_code=400)
