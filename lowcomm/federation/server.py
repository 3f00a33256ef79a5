"""The ServerApp: one session per run, and the file that says how it ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.federation.clients import LostClient
from lowcomm.federation.mailbox import Outcome
from lowcomm.federation.session import FederationError, Session

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp


def write_outcome(path: Path, error: str | None, outcomes: Sequence[Outcome], lost: Sequence[LostClient] = ()) -> None:
    """For `lowcomm federation run`, which waits for it. outcomes: of the clients that were not lost."""
    sha256, code = (outcomes[0].weights_sha256, outcomes[0].code) if outcomes else (None, 1)
    partial = path.with_name(f".{path.name}.partial")
    found = {"error": error, "code": code, "weights_sha256": sha256, "lost": [vars(client) for client in lost]}
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)


def make_server_app() -> ServerApp:
    """The ServerApp; its run config: clients, patience-s, and outcome, a file that it writes at the end."""
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = context.run_config
        outcome = Path(str(config["outcome"]))
        session = Session(grid, int(config["clients"]), float(config["patience-s"]))
        try:
            outcomes = session.run()
        except FederationError as error:
            write_outcome(outcome, str(error), [])
            raise
        write_outcome(outcome, None, outcomes, session.lost())

    return app
