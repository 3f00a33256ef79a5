"""The report: one HTML file for one or several runs, with plotly.js inside, so that it opens offline."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lowcomm.report import sections
from lowcomm.report.bandwidth import bandwidth_figures
from lowcomm.report.clients import client_figures, loss_table, verdict_table
from lowcomm.report.figures import Figure, curve_figures
from lowcomm.report.influence import influence_figures
from lowcomm.report.load import Run, load_run
from lowcomm.report.members import member_figures, member_table
from lowcomm.report.partition import client_table, partition_figures
from lowcomm.report.privacy import privacy_section
from lowcomm.report.script import SCRIPT
from lowcomm.report.series import labels
from lowcomm.report.step_hashes import step_hash_section
from lowcomm.report.style import STYLE
from lowcomm.report.timeline import timeline_figures
from lowcomm.types import ConfigError


def write_report(run_dirs: list[Path], out: Path | None = None) -> Path:
    """Write the page and return its path; `out` defaults to report.html in the first run.

    Raises ConfigError for no runs, for a directory that is no run directory, for an `out` that cannot be
    written, and where plotly is not installed.
    """
    if not run_dirs:
        raise ConfigError("run_dirs is empty: pass at least one run directory, as in `lowcomm report runs/NAME`")
    plotly_js = load_plotly_js()
    runs = [load_run(Path(run_dir)) for run_dir in run_dirs]
    target = Path(run_dirs[0]) / "report.html" if out is None else Path(out)
    write_page(target, page_of(runs, plotly_js))
    return target


def load_plotly_js() -> str:
    """The library's source. Raises ConfigError where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError("the report needs plotly: pip install 'lowcomm[report]'") from None
    return get_plotlyjs()


def write_page(target: Path, page: str) -> None:
    """Atomic, so that a browser that reloads while a run is watched never reads half a page."""
    if target.is_dir():
        raise ConfigError(f"out={str(target)!r} is a directory: pass the path of a file, as in {target}/report.html")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(page, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ConfigError(
            f"out={str(target)!r} cannot be written ({error.strerror}): pass --out with a path in a folder "
            "that is writable and has space"
        ) from None


def embedded_json(value: object) -> str:
    """JSON that is safe inside a script element: it holds no `<`, so no name can close the element."""
    packed = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """A content policy that runs exactly these scripts and lets nothing reach the network."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def plot_panel(figure: Figure, identity: str, kind: str) -> str:
    """Title, caption and the element that the script draws into."""
    if figure.empty:
        body = '<div class="empty">Nothing logged yet.</div>'
    else:
        height = figure.spec["layout"].get("height")
        style = f' style="height:{height}px"' if height else ""
        body = f'<div class="plot" id="{identity}"{style} role="img" aria-label="{sections.text(figure.title)}"></div>'
    return (
        f'<figure class="panel {kind}"><h3>{sections.text(figure.title)}</h3>'
        f"{body}<figcaption>{sections.text(figure.caption)}</figcaption></figure>"
    )


def _header(runs: Sequence[Run], names: Sequence[str]) -> str:
    if len(runs) == 1:
        head = f"<h1>{sections.text(names[0])}</h1>{sections.subtitle(runs[0])}{sections.tiles(runs[0])}"
    else:
        table = sections.run_table(runs, names)
        head = f"<h1>{len(runs)} runs</h1>{table}"
    return f"<header>{head}{sections.warning_list(runs, names)}</header>"


def _body(runs: Sequence[Run], names: Sequence[str], figures: dict[str, Figure]) -> str:
    curves = "".join(plot_panel(f, i, "curve") for i, f in figures.items() if i.startswith("curve"))
    lines = "".join(plot_panel(f, i, "timeline") for i, f in figures.items() if i.startswith("timeline"))
    bandwidth = "".join(plot_panel(f, i, "curve") for i, f in figures.items() if i.startswith("bandwidth"))
    losses = "".join(plot_panel(f, i, "timeline") for i, f in figures.items() if i.startswith("clients"))
    worth = f"{verdict_table(runs, names)}{losses}{loss_table(runs, names)}"
    losses = f"<h2>What it was worth to each client</h2>{worth}" if losses else ""
    clients = "".join(plot_panel(f, i, "timeline") for i, f in figures.items() if i.startswith("partition"))
    clients = f"<h2>Clients</h2>{clients}{client_table(runs, names)}" if clients else ""
    shared = "".join(plot_panel(f, i, "timeline") for i, f in figures.items() if i.startswith("influence"))
    members = "".join(plot_panel(f, i, "curve") for i, f in figures.items() if i.startswith("members"))
    members = f'<h2>Members</h2><div class="plots">{members}</div>{member_table(runs, names)}' if members else ""
    return (
        f"{_header(runs, names)}"
        f'<h2>Quality and cost</h2><p class="hint">Drag to zoom, double-click to reset.</p>'
        f"{sections.legend(names) if len(runs) > 1 else ''}"
        f'<div class="plots">{curves}{bandwidth}</div>{members}{losses}{privacy_section(runs, names)}'
        f"<h2>Timeline of compute and transfer</h2>{sections.timeline_key(len(runs))}{lines}"
        f"{clients}{shared}<h2>Islands</h2>{sections.island_table(runs, names)}"
        f"{sections.notes(runs, names)}{step_hash_section(runs, names)}"
        f"<h2>{'Configuration' if len(runs) == 1 else 'Configuration: differences'}</h2>"
        f"{sections.configuration(runs, names)}"
        f"<h2>Environment</h2>{sections.environment(runs, names)}"
        "<footer>Written by lowcomm. Bytes are counted, in decimal units.</footer>"
    )


def page_of(runs: Sequence[Run], plotly_js: str) -> str:
    """The whole page; every text of the runs is escaped."""
    names = labels(runs)
    figures = {f"curve-{i}": figure for i, figure in enumerate(curve_figures(runs, names))}
    figures |= {f"bandwidth-{i}": figure for i, figure in enumerate(bandwidth_figures(runs, names))}
    figures |= {f"timeline-{i}": figure for i, figure in enumerate(timeline_figures(runs, names))}
    figures |= {f"members-{i}": figure for i, figure in enumerate(member_figures(runs, names))}
    figures |= {f"clients-{i}": figure for i, figure in enumerate(client_figures(runs, names))}
    figures |= {f"partition-{i}": figure for i, figure in enumerate(partition_figures(runs, names))}
    figures |= {f"influence-{i}": figure for i, figure in enumerate(influence_figures(runs, names))}
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    return document(title, _body(runs, names, figures), figures, plotly_js)


def document(title: str, body: str, figures: Mapping[str, Figure], plotly_js: str) -> str:
    """A whole page that loads nothing; `body` has a `plot_panel` for each figure, under the same identity."""
    data = {identity: figure.spec for identity, figure in figures.items() if not figure.empty}
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy((plotly_js, SCRIPT))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{sections.text(title)} · lowcomm</title><style>{STYLE}</style></head>\n"
        f"<body><main>{body}"
        "<noscript><p>The plots need JavaScript.</p></noscript></main>\n"
        f'<script type="application/json" id="figures">{embedded_json(data)}</script>\n'
        f"<script>{plotly_js}</script>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )
