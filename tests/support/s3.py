"""Servers that speak S3 for tests: `localbucket` as a process of its own, and one that answers what it is told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "bucket"


class Bucket:
    """A `localbucket` process with one bucket, whose log names each request; it may be frozen, killed and started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "buckets" / BUCKET).mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        """Start it on its port and wait until it serves."""
        command = [sys.executable, "-u", "-m", "localbucket", "--port", str(self.port), str(self.folder / "buckets")]
        before = len(self._lines())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not any("serving" in line for line in self._lines()[before:]):
            assert self.process.poll() is None, self._lines()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)

    def stop(self) -> None:
        """Kill it; what was created stays."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def requests(self) -> list[str]:
        """Method and path of what it was asked, in order."""
        return [line.split('"')[1].rsplit(" ", 1)[0] for line in self._lines() if "HTTP/1.1" in line]

    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return environment(self.port)

    def _lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


def environment(port: int) -> dict[str, str]:
    """Address and credentials for a server on this machine."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
    }


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """A server for as long as the block runs; this process's environment names it."""
    server = Bucket(folder)
    try:
        with in_environment(server.environment()):
            yield server
    finally:
        server.stop()


@contextlib.contextmanager
def in_environment(values: dict[str, str]) -> Iterator[None]:
    """These variables, and no other of the clouds', for as long as the block runs."""
    ours = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "GOOGLE_", "AZURE_"))}
    for name in ours:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(ours)


class Scripted(ThreadingHTTPServer):
    """Answers every request with `status` and an S3 error `code`, or never (status None)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status: int | None = 200
        self.code = ""
        self.asked: list[str] = []
        self.released = threading.Event()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.status is None:
            self.server.released.wait()
            self.close_connection = True
            return
        body = f"<Error><Code>{self.server.code}</Code></Error>".encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@contextlib.contextmanager
def scripted() -> Iterator[Scripted]:
    """A scripted server for as long as the block runs; this process's environment names it."""
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            with in_environment(environment(server.port)):
                yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
