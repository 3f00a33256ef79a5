"""A client of a federation: the trainer of one island, and the worker that carries its exchanges."""

from __future__ import annotations

import json
from pathlib import Path

from lowcomm.config import RunConfig
from lowcomm.federation.engine import need_flower
from lowcomm.federation.keys import MOST_CLIENTS
from lowcomm.federation.mailbox import Mailbox, Outcome
from lowcomm.federation.worker import Worker, make_client_app
from lowcomm.membership import World, count_islands
from lowcomm.report.console import show_run
from lowcomm.trainer import train
from lowcomm.transport.relayed import Relayed
from lowcomm.types import ConfigError, LowcommError, require

PARTING_S = 10.0
"""How long to wait, at the end, until the server has heard how it ended."""


def run_client(config: RunConfig, client: int, clients: int, node: str, secret_file: Path) -> int:
    """Train as client `client` of `clients`; returns the run's exit code. Raises LowcommError.

    node: HOST:PORT of the Runtime API of the SuperNode on this machine; secret_file: the secret that it was given.
    """
    need_flower()
    require(1 <= clients <= MOST_CLIENTS, "clients", clients, f"1 to {MOST_CLIENTS}", "pass --clients 3")
    require(0 <= client < clients, "client", client, f"0 to {clients - 1}", "give each client its own --client")
    host, _, port = node.rpartition(":")
    local = host in ("127.0.0.1", "localhost", "[::1]")
    require(local and port.isdigit(), "node", node, "127.0.0.1:PORT", "run the SuperNode on this machine")
    world = World(rank=client, size=clients, local_rank=0, local_size=1, relayed=True)
    count_islands(config, world)
    try:
        secret = secret_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"secret = {str(secret_file)!r} can't be read. Fix: lowcomm federation keys") from error
    mailbox = Mailbox(config.sync.timeout_s)
    worker = Worker(make_client_app(mailbox, client, clients), mailbox, node, secret)
    outcome = Outcome(code=1, error="it was interrupted")
    worker.start()
    try:
        code = train(config, world, Relayed(clients, client, mailbox.post), show_run)
        outcome = _outcome(config, code)
        return code
    except LowcommError as error:
        outcome = Outcome(code=2 if isinstance(error, ConfigError) else 1, error=str(error))
        raise
    finally:
        mailbox.finish(outcome)
        mailbox.parted.wait(PARTING_S)
        worker.stop()
        worker.join(PARTING_S)  # half a reply would keep the server waiting for the rest


def _outcome(config: RunConfig, code: int) -> Outcome:
    summary = json.loads((config.directory / "summary.json").read_text(encoding="utf-8"))
    return Outcome(
        code=code,
        weights_sha256=summary["weights_sha256"],
        error=None if code == 0 else "it was stopped",
        lost=tuple((int(island), missed) for island, missed in summary["lost"].items()),
    )
