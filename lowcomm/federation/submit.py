"""Starts a run of the ServerApp on a SuperLink, shows its log, and says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lowcomm.federation.engine import need_flower
from lowcomm.federation.keys import MOST_CLIENTS, check_server
from lowcomm.types import ConfigError, require

LOG_S = 5.0
"""How long the rest of the log may take once the outcome is known."""
APP = """\
[project]
name = "lowcomm-federation"
version = "0.1.0"
description = "Relays the exchanges of lowcomm's clients"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "lowcomm"

[tool.flwr.app.components]
serverapp = "lowcomm_federation.app:server"
clientapp = "lowcomm_federation.app:client"

[tool.flwr.app.config]
clients = 0
patience-s = 0.0
outcome = ""
"""
"""The Flower app that `flwr run` sends to the SuperLink: two lines that name what is installed there."""

CODE = '''\
"""The ServerApp is lowcomm's, installed beside the SuperLink; a ClientApp is run by `lowcomm federation client`."""

from flwr.clientapp import ClientApp
from lowcomm.federation.server import make_server_app

server = make_server_app()
client = ClientApp()
'''


def run_federation(superlink: str, authority: Path, clients: int, patience_s: float, wait_s: float) -> int:
    """Start a run for `clients` clients and wait for it. Raises ConfigError.

    Returns 0 if all of them ended well, or all that were left where the run went on without one that was lost; 3 if all
    were stopped with everything saved; else 1.

    superlink: HOST:PORT, on this machine, as its ServerApp writes the outcome to a file here.
    """
    need_flower()
    require(1 <= clients <= MOST_CLIENTS, "clients", clients, f"1 to {MOST_CLIENTS}", "pass --clients 3")
    require(0 < patience_s < 1e9, "patience-s", patience_s, "above 0", "pass --patience-s 600")
    check_server(superlink, authority, wait_s)
    with tempfile.TemporaryDirectory(prefix="lowcomm-federation-") as name:
        home = Path(name)
        outcome = home / "outcome.json"
        _write_app(home / "app")
        configure(home / "flower", superlink, authority)
        settings = f'clients={clients} patience-s={float(patience_s)} outcome="{outcome}"'
        command = ["run", str(home / "app"), "federation", "--stream", "--run-config", settings]
        with flower(command, home / "flower") as shown:
            while shown.poll() is None and not outcome.exists():
                time.sleep(0.2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                shown.wait(LOG_S)
            shown.terminate()
        if not outcome.exists():
            print(
                f"lowcomm: error: the run ended without an outcome (flwr: exit code {shown.returncode}). Fix: see "
                "the log of the SuperLink",
                file=sys.stderr,
            )
            return 1
        found = json.loads(outcome.read_text(encoding="utf-8"))
    if found["error"] is not None:
        print(f"lowcomm: error: {found['error']}", file=sys.stderr)
        return 1
    word = "done" if found["code"] == 0 else "stopped"
    lost = found["lost"]
    for client in lost:
        when = "" if client["round"] is None else f" in round {client['round']}"
        print(f"warning: client {client['client']} was lost{when}, the others went on without it: {client['cause']}")
    count = f"{clients - len(lost)} of {clients}" if lost else clients
    print(f"{word}: {count} clients, weights_sha256 {found['weights_sha256']}")
    return found["code"]


def register(superlink: str, authority: Path, public_keys: list[Path], wait_s: float) -> None:
    """Make the SuperLink know these nodes; unknown ones are refused. Raises ConfigError."""
    need_flower()
    check_server(superlink, authority, wait_s)
    with tempfile.TemporaryDirectory(prefix="lowcomm-federation-") as name:
        configure(Path(name), superlink, authority)
        for key in public_keys:
            if not key.is_file():
                raise ConfigError(f"{key} is not there. Fix: get node.pub from the client")
            with flower(["supernode", "register", str(key), "federation"], Path(name), quiet=True) as asked:
                answer = asked.communicate()[0]
            if asked.returncode != 0:
                raise ConfigError(f"the SuperLink refused {key}: {' '.join(answer.split())}. Fix: another key")


def configure(home: Path, superlink: str, authority: Path) -> None:
    """Write the Flower configuration that names the SuperLink."""
    home.mkdir(parents=True, exist_ok=True)
    text = f'[superlink.federation]\naddress = "{superlink}"\nroot-certificates = "{authority.resolve()}"\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


def flower(arguments: list[str], home: Path, quiet: bool = False) -> subprocess.Popen[str]:
    """`flwr ARGUMENTS` with a home of its own, without telemetry or looking for updates."""
    silent = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    program = Path(sys.executable).with_name("flwr")
    return subprocess.Popen(
        [str(program), *arguments],
        env={**os.environ, **silent},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )


def _write_app(directory: Path) -> None:
    package = directory / "lowcomm_federation"
    package.mkdir(parents=True)
    (directory / "pyproject.toml").write_text(APP, encoding="utf-8")
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "app.py").write_text(CODE, encoding="utf-8")
