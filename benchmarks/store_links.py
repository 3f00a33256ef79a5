"""Scenarios over a shaped network, and over a server that refuses: hosts reach the store and nothing else."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks import store_recipes as recipes
from benchmarks.netlab.lab import Lab, Link
from benchmarks.store_members import Island, Run, outcome
from benchmarks.store_scenarios import Row, start
from tests.support.s3 import BUCKET, Bucket, environment, in_environment

PORT = 29_741


def joined(short: bool) -> Row:
    """Two members train 4.3M parameters over 100 Mbit/s links; a third one joins: who waits for it?"""
    config = recipes.run(islands=2, rounds=10 if short else 16, every=4, model=recipes.SMALL)
    with laboratory(4, Link(rate_mbit=100, delay_ms=5), "joined") as run:
        run.create(config)
        first = [run.join(f"island-{n}", host=2 + n) for n in range(2)]
        run.wait(lambda: run.versions() >= 4)
        before, began = run.versions(), time.monotonic()
        joiner = run.join("joiner", host=4)
        run.wait(lambda: bool(joiner.lines("sync")) or joiner.poll() is not None)
        first_s = time.monotonic() - began
        run.wait_for_end()
        row = outcome(run, config)
        admitted = next(line["version"] for line in joiner.lines("version") if "joiner" in (line["note"] or ""))
        used = joiner.lines("sync")[0]["version"]
        usual = statistics.median(_waits(first, 1, before))
        healing, together = _waits(first, before, admitted), _waits(first, admitted, used)
        return row | {
            "usual_wait_s": usual,
            "stall_while_it_healed_s": max(healing, default=usual) - usual,
            "wait_in_its_first_rounds_s": max(together, default=usual) - usual,
            "torchft_stall_s": 9.3,
            "rounds_to_first_contribution": used - admitted,
            "start_to_first_contribution_s": first_s,
        }


def partitioned(short: bool) -> Row:
    """One of two members is cut off from the store for 15 s: one history."""
    config = recipes.run(islands=2, rounds=16 if short else 40, patience_s=5.0)
    with laboratory(3, Link(rate_mbit=1000), "partitioned") as run:
        run.create(config)
        for n in range(2):
            run.join(f"island-{n}", host=2 + n)
        run.wait(lambda: run.versions() >= 4)
        run.lab.shape(Link(rate_mbit=1000, cut=((1, 3),)))
        before, began = run.versions(), time.monotonic()
        run.wait(lambda: time.monotonic() - began >= 15)
        during = run.versions() - before
        run.lab.shape(Link(rate_mbit=1000))
        run.wait_for_end()
        return outcome(run, config) | {"versions_while_cut": during, "torchft_histories": 2}


def refused(short: bool) -> Row:
    """The store answers 403 for 5 s, then each request a second late for 5 s: nobody exits, the refusal is named."""
    config = recipes.run(islands=2, rounds=10 if short else 20)
    run = Run("refused", f"s3://{BUCKET}/run")
    server = Bucket(run.directory)
    proxy = Proxy(server.port)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        with in_environment(environment(proxy.server_address[1])):
            run.folder = run.directory / "buckets" / BUCKET / "run"
            start(run, config)
            run.wait(lambda: run.versions() >= 3)
            for mode in ("refuse", "slow", ""):
                proxy.mode, since = mode, time.monotonic()
                run.wait(lambda since=since: time.monotonic() - since >= 5)
            run.wait_for_end()
            row = outcome(run, config)
    finally:
        run.end()
        proxy.shutdown()
        server.stop()
    causes = {line["cause"] for island in run.islands for line in island.lines("note") if line["cause"]}
    return row | {"causes": sorted(causes)}


def _waits(islands: list[Island], above: int, to: int) -> list[float]:
    """Seconds that they waited in each round of these versions."""
    return [line["blocked_s"] for one in islands for line in one.lines("sync") if above < line["version"] <= to]


class LabRun(Run):
    """A run whose members are on hosts of a laboratory; the store is on host 1."""

    lab: Lab


@contextlib.contextmanager
def laboratory(hosts: int, link: Link, name: str) -> Iterator[LabRun]:
    run = LabRun(name, f"s3://{BUCKET}/run")
    buckets = run.directory / "buckets"
    (buckets / BUCKET).mkdir(parents=True)
    run.folder = buckets / BUCKET / "run"
    address = {**environment(PORT), "AWS_ENDPOINT_URL": f"http://10.78.0.1:{PORT}", "AWS_ALLOW_HTTP": "true"}
    with Lab(hosts, link) as lab, in_environment(address):
        run.lab, run.host, log = lab, 2, run.directory / "server.log"
        command = [sys.executable, "-u", "-m", "localbucket", "--host", "10.78.0.1", "--port", str(PORT), str(buckets)]
        server = lab.start(1, command, {}, log)
        try:
            run.wait(lambda: log.exists() and "serving" in log.read_text(encoding="utf-8"), 60)
            yield run
        finally:
            run.end()
            server.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, refuses them or is slow, as `mode` says."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port, self.mode = port, ""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def proxy(self) -> Proxy:
        """Whose connection it is."""
        assert isinstance(self.server, Proxy)
        return self.server

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.proxy.mode == "refuse":
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>", {})
            return
        time.sleep(1.0 if self.proxy.mode == "slow" else 0)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.proxy.port}{self.path}", data=body or None, method=self.command
        )
        for name, value in self.headers.items():
            if name.lower() not in ("host", "content-length", "connection"):
                request.add_header(name, value)
        try:
            with urllib.request.urlopen(request) as answer:
                self._answer(answer.status, answer.read(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.read(), dict(error.headers))

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = _pass_on  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""
