"""Pages that make a run: the list of recipes, the form of one, the reading of a sentence, the start."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from lowcomm.types import ConfigError
from lowcomm.ui.desk import Desk, desk_of, given_of, sent, text_of
from lowcomm.ui.recipes import offered
from lowcomm.ui.templates import render

if TYPE_CHECKING:
    from lowcomm.ui.form import Judged

SECTIONS = {
    "": "name, islands, steps, seed, where it runs",
    "sync": "what happens between islands",
    "model": "which model is trained",
    "data": "text, tokens, how islands share it",
    "inner": "the steps between two syncs",
    "eval": "when and on what the global weights are evaluated",
    "checkpoint": "what is kept",
    "island": "what an island is made of",
}
OPEN = ("run", "sync")
GIVEN = "set."
"""Before the names of changed fields in an address."""


def new(request: Request) -> Response:
    """The list of recipes, or the form of the one that the address names, with the changes that it has."""
    desk, reference = desk_of(request), request.query_params.get("recipe")
    if reference is None:
        groups = itertools.groupby(offered(), key=lambda info: info.name.partition(":")[0])
        values = page_values(desk, "New run", "new", ["common.js"])
        return HTMLResponse(render("recipes", {**values, "files": [(file, list(infos)) for file, infos in groups]}))
    from lowcomm.ui.form import judge, recipe_config, with_free_name
    from lowcomm.ui.recipes import check_offered

    given = {k.removeprefix(GIVEN): v for k, v in request.query_params.items() if k.startswith(GIVEN)}
    check_offered(reference)
    judged = judge(reference, with_free_name(recipe_config(reference), given, desk.root), desk.root)
    values = page_values(desk, reference, "new", ["common.js", "form.js"])
    return HTMLResponse(render("form", {**values, **form_values(judged), "summary": summary_of(reference)}))


def page_values(desk: Desk, title: str, here: str, scripts: list[str]) -> dict[str, object]:
    """What every page has."""
    return {"base": desk.base, "title": title, "here": here, "scripts": scripts, "root": str(desk.root)}


def form_values(judged: Judged) -> dict[str, object]:
    """What a form and the column beside it show."""
    from lowcomm.membership import DEFAULT_ISLANDS

    names = [name for name in SECTIONS if any(row.section == name for row in judged.rows)]
    sections = [
        (name or "run", SECTIONS[name], (name or "run") in OPEN, [row for row in judged.rows if row.section == name])
        for name in names
    ]
    islands = DEFAULT_ISLANDS if judged.config.islands is None else judged.config.islands
    return {"judged": judged, "sections": sections, "because": None, "islands": islands}


def summary_of(reference: str) -> str:
    """The first line of the recipe's docstring."""
    return next((info.summary for info in offered() if info.name == reference), "")


async def check(request: Request) -> Response:
    """A form judged: problems by field, the column beside it, and its rows where they are others now."""
    values = await sent(request)
    return await run_in_threadpool(_check, desk_of(request), values)


def _check(desk: Desk, values: Mapping[str, Any]) -> Response:
    from lowcomm.ui.form import judge

    choose: object = values.get("choose")
    picked = None
    if isinstance(choose, list) and len(choose) == 2 and all(isinstance(word, str) for word in choose):
        picked = (choose[0], choose[1])
    judged = judge(text_of(values, "recipe"), given_of(values), desk.root, picked)
    shown = form_values(judged)
    redraw = picked is not None or judged.shape != values.get("shape")
    return JSONResponse(
        {
            "problems": judged.problems,
            "given": judged.given,
            "command": judged.command,
            "side": render("side", shown),
            "form": render("fields", shown) if redraw else None,
        }
    )


async def start(request: Request) -> Response:
    """Start the run of a form in which nothing is wrong."""
    values = await sent(request)
    return await run_in_threadpool(_start, desk_of(request), values)


def _start(desk: Desk, values: Mapping[str, Any]) -> Response:
    from lowcomm.ui.form import judge

    judged = judge(text_of(values, "recipe"), given_of(values), desk.root)
    if judged.problems:
        raise ConfigError(next(iter(judged.problems.values())))
    desk.trainings.start(desk.root / judged.config.name, judged.arguments)
    return JSONResponse({"url": run_url(desk, judged.config.name)})


def run_url(desk: Desk, name: str) -> str:
    """Of a run's page."""
    return f"{desk.base}runs/{urlencode({'': name})[1:].replace('+', '%20')}"


def form_url(desk: Desk, reference: str, given: Mapping[str, str]) -> str:
    """Of the form of a recipe with these changes."""
    return f"{desk.base}new?{urlencode({'recipe': reference, **{GIVEN + path: text for path, text in given.items()}})}"


async def intent(request: Request) -> Response:
    """A sentence read by rules, shown as differences from a recipe."""
    values = await sent(request)
    return await run_in_threadpool(_intent, desk_of(request), values)


def _intent(desk: Desk, values: Mapping[str, Any]) -> Response:
    from lowcomm.ui.intent import understand

    current = values.get("current")
    found = understand(text_of(values, "text"), desk.root, current if isinstance(current, str) else None)
    judged = found.judged
    shown: dict[str, object] = {
        "judged": judged, "because": found.because, "notes": found.notes, "left": found.left,
        "summary": summary_of(judged.reference), "form_url": form_url(desk, judged.reference, judged.given),
    }  # fmt: skip
    return JSONResponse({"html": render("understood", shown), "recipe": judged.reference, "given": judged.given})
