"""`lowcomm ui`: flags, what is missing, and the server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from lowcomm.types import ConfigError, require

NEEDED = ("starlette", "uvicorn", "jinja2", "plotly")


class _Parser(argparse.ArgumentParser):
    """Bad input is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"lowcomm ui: {message}. Fix: see lowcomm ui --help")


def run_ui(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C. Raises ConfigError for bad input."""
    options = _parser().parse_args(arguments)
    root: Path = options.runs_dir
    ok = not root.exists() or root.is_dir()
    require(ok, "--runs-dir", str(root), "a directory, or none yet", "leave it out, or give another one")
    require(0 <= options.port <= 65535, "--port", options.port, "0 to 65535; 0: any that is free", "leave it out")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the pages need {', '.join(missing)}: pip install 'lowcomm[ui]'")
    from lowcomm.ui.server import serve

    return serve(root, options.port, options.when_closed)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lowcomm ui",
        description="Pages to start, stop, resume, watch and compare runs, in a browser of this machine.",
    )
    add = parser.add_argument
    add("--runs-dir", type=Path, default=Path("runs"), help="directory of the runs (default: runs)")
    add("--port", type=int, default=0, help="port on 127.0.0.1 (default: 0, any that is free)")
    add(
        "--when-closed", choices=("leave", "stop"), default="leave",
        help="what becomes of trainings when the server ends: they go on (leave), or save and stop (default: leave)",
    )  # fmt: skip
    return parser
