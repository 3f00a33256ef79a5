"""Headless Chromium, driven through a pipe (Chrome DevTools Protocol): no port, no other package."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is on PATH")
LIMIT_S = 60.0


class Browser:
    """One page of one browser."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.console: list[str] = []
        """What pages wrote to the console as warnings or errors, and exceptions of their scripts."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            answer = self._receive(deadline_s)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._reading, 1 << 20)
            assert chunk, "the browser is gone"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        values = message.get("params", {})
        if message.get("method") == "Log.entryAdded" and values["entry"]["level"] in ("warning", "error"):
            self.console.append(values["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.console.append(json.dumps(values["exceptionDetails"])[:500])
        return message

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def run(self, code: str) -> Any:
        """The value of an expression on the page."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, code: str) -> Any:
        """Until an expression is true; its value."""
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(AssertionError):
                if value := self.run(code):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {code}; console: {self.console}")

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Size of the window and colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, *, whole: bool = True) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile, which ends with the block."""
    assert BROWSER is not None
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "extensions", "dev-shm-usage"]
    command = [BROWSER, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{word}" for word in quiet)]
    command += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "--hide-scrollbars", "about:blank"]
    their_reading, writing = os.pipe()
    reading, their_writing = os.pipe()

    # the browser reads 3 and writes 4
    redirected = ["bash", "-c", f'exec "$@" 3<&{their_reading} 4>&{their_writing}', "bash", *command]
    process = subprocess.Popen(
        redirected,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(their_reading, their_writing),
    )
    os.close(their_reading)
    os.close(their_writing)
    try:
        yield Browser(reading, writing)
    finally:
        process.terminate()
        process.wait(30)
        os.close(reading)
        os.close(writing)
