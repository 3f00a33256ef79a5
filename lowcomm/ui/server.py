"""The server: one socket on 127.0.0.1, one link on the terminal, a clean end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Literal

import uvicorn

from lowcomm.run.signals import caught
from lowcomm.types import ConfigError
from lowcomm.ui.app import guarded
from lowcomm.ui.desk import Desk
from lowcomm.ui.guard import Keys
from lowcomm.ui.trainings import Trainings

ADDRESS = "127.0.0.1"
POLL_S = 0.1
Closed = Literal["leave", "stop"]


def serve(root: Path, port: int, when_closed: Closed) -> int:
    """Until a signal comes; returns 0. port: 0 for any that is free. Raises ConfigError for one that is taken."""
    listener = _listen(port)
    keys = Keys(port=listener.getsockname()[1])
    desk = Desk(root=root, base=keys.base)
    app = guarded(desk, keys, lambda: print(f"next link, for another browser: {keys.link}", flush=True))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off", timeout_keep_alive=5
    )
    server = uvicorn.Server(config)
    with caught() as signals:
        desk.closing = lambda: server.should_exit or bool(signals)
        print(f"{keys.link}  (open it in a browser of this machine; Ctrl-C ends)", flush=True)
        asyncio.run(_until(server, listener, signals))
    _say_goodbye(desk.trainings, when_closed)
    return 0


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port = {port} is not allowed: {error.strerror}. Fix: leave it out, or another one"
        ) from error
    listener.listen(64)
    return listener


async def _until(server: uvicorn.Server, listener: socket.socket, signals: list[int]) -> None:
    """Serve until a signal comes: uvicorn itself knows of two of them only."""

    async def watch() -> None:
        while not signals:
            await asyncio.sleep(POLL_S)
        server.should_exit = True

    watching = asyncio.create_task(watch())
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()


def _say_goodbye(trainings: Trainings, when_closed: Closed) -> None:
    """Leave the trainings of this server alone, or ask them to save and wait until they have."""
    left = trainings.left()
    if not left:
        return
    names = ", ".join(left)
    if when_closed == "leave":
        print(f"still training: {names}. They go on; lowcomm ui shows and stops them again", flush=True)
        return
    print(f"asked to save and stop: {names}. Ctrl-C leaves them to it", flush=True)
    with caught() as signals:
        for name in left:
            trainings.ask(name)
        for name in left:
            while not signals and not trainings.wait(name, POLL_S):
                pass
