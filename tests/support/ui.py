"""`lowcomm ui` as a process, and a client that has its link."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.support.runs import ROOT


@dataclass(kw_only=True)
class Client:
    """A browser without scripts."""

    http: httpx.Client
    origin: str
    base: str

    @classmethod
    def of(cls, link: str) -> Client:
        """Uses the link up."""
        parts = urlsplit(link)
        origin = f"{parts.scheme}://{parts.netloc}"
        http = httpx.Client(base_url=origin, timeout=60, headers={"origin": origin}, trust_env=False)
        answer = http.get(f"/?{parts.query}")
        assert answer.status_code == 200, answer.text
        found = re.search(r"url=(/[^/]+/)", answer.text)
        assert found is not None
        return cls(http=http, origin=origin, base=found[1])

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str) -> httpx.Response:
        return self.http.get(self.base + path)

    def post(self, path: str, value: object) -> dict[str, Any]:
        return self.http.post(self.base + path, json=value).json()

    def events(self, name: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What a run's page shows when this is true of it for the first time."""
        last: dict[str, Any] = {}
        with self.http.stream("GET", f"{self.base}runs/{name}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {") and line != "data: {}":
                    last = json.loads(line.removeprefix("data: "))
                    if until(last):
                        return last
        raise AssertionError(f"the run has ended: {last}")


@dataclass(kw_only=True)
class Server:
    """The process."""

    process: subprocess.Popen[str]
    lines: list[str]
    link: str

    def end(self, number: int = signal.SIGINT) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def server(directory: Path, arguments: Sequence[str] = ()) -> Iterator[Server]:
    """`lowcomm ui` in this directory; killed at the end, if it has not ended."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lowcomm.cli", "ui", *arguments],
        cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        assert lines[0].startswith("http://127.0.0.1:"), lines
        yield Server(process=process, lines=lines, link=lines[0].split()[0])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(10)
        process.stdout.close()
