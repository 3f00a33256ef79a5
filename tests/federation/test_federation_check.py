"""What `lowcomm federation check` says of a server's certificate, and of no server at all."""

from __future__ import annotations

import datetime
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowcomm.cli import main
from lowcomm.federation import keys as keys_module
from tests.launch.test_launch import launch
from tests.support.runs import free_port
from tests.support.tls import serving

pytest.importorskip("flwr")


def make(directory: Path, host: str, monkeypatch: pytest.MonkeyPatch, days_from_now: int = 0) -> Path:
    """Keys for a server at `host` whose certificate begins then and is valid for 90 days."""

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # pyright: ignore[reportIncompatibleMethodOverride]
            return datetime.datetime.now(tz) + datetime.timedelta(days=days_from_now)

    with monkeypatch.context() as patch:
        shifted = SimpleNamespace(datetime=Then, timedelta=datetime.timedelta, UTC=datetime.UTC)
        patch.setattr(keys_module, "datetime", shifted)
        keys_module.make_keys(directory, 1, host, 90)
    return directory


def check(address: str, keys: Path, *more: str) -> int:
    own = ["--ca", str(keys / "ca.crt"), "--key", str(keys / "client-0" / "node.pub")]
    return main(["federation", "check", "--superlink", address, *own, *more])


@pytest.mark.parametrize(
    ("host", "days", "fault", "fix"),
    [
        ("127.0.0.1", -100, "has expired", "ask the server's owner for new ones"),
        ("127.0.0.1", 3, "is not valid yet", "correct this machine's clock"),
        ("fed.example.org", 0, "is for another name", "pass --superlink with the name"),
        ("127.0.0.2", 0, "is for another name", "pass --superlink with the name"),
    ],
)
def test_the_fault_of_a_certificate_is_named(
    host: str,
    days: int,
    fault: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = make(tmp_path / "keys", host, monkeypatch, days)
    with serving(keys) as port:
        assert check(f"127.0.0.1:{port}", keys) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line and f"Fix: {fix}" in line
    assert "did not sign" not in line


def test_an_address_of_six_bytes_and_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = make(tmp_path / "keys", "::1", monkeypatch)
    try:
        with serving(keys, "::1") as port:
            assert check(f"[::1]:{port}", keys) == 0
            assert check(f"::1:{port}", keys) == 2
            assert f"Fix: write [::1]:{port}" in capsys.readouterr().err
    except OSError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:²", ":9092", "127.0.0.1"])
def test_a_bad_address(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(address, make(tmp_path / "keys", "::1", monkeypatch)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"superlink = {address!r} is not allowed" in line


def test_nobody_there_ends_after_a_time_and_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = make(tmp_path / "keys", "127.0.0.1", monkeypatch)
    address = f"127.0.0.1:{free_port()}"
    assert check(address, keys, "--wait-s", "0.3") == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"waiting up to 0.3 s for a TLS server at {address} (") and said.out.count("\n") == 1
    assert f"there is no TLS server at {address}" in said.err and said.err.count("\n") == 1


def test_a_client_asks_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = make(tmp_path / "keys", "127.0.0.1", monkeypatch)
    server = ["--superlink", f"127.0.0.1:{free_port()}", "--ca", keys / "ca.crt", "--wait-s", "0"]
    own = ["--keys", keys / "client-0", "--client", "0", "--clients", "3", "--port", str(free_port())]
    start_s = time.monotonic()
    done = launch("launch/federation/client.sh", *server, *own, "--python", sys.executable, "diloco.py:smoke")
    assert done.returncode == 2
    assert done.stderr.startswith("lowcomm: error: there is no TLS server at ") and done.stderr.count("\n") == 1
    assert time.monotonic() - start_s < 55
    assert not (keys / "client-0" / "supernode.log").exists()


def test_a_port_that_is_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = make(tmp_path / "keys", "127.0.0.1", monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        client = ["--superlink", "127.0.0.1:1", "--ca", keys / "ca.crt", "--keys", keys / "client-0", "--client", "0"]
        python = ["--python", sys.executable]
        secret = tmp_path / "secret"
        secret.write_text("s" * 44)
        secret.chmod(0o600)
        node = [
            "--secret",
            secret,
            "--nodes",
            "2",
            "--master",
            "127.0.0.1",
            "--address",
            "127.0.0.1",
            "--behind-firewall",
        ]
        for command in (
            ["launch/federation/client.sh", *client, "--clients", "3", "--port", port, *python, "diloco.py:smoke"],
            ["launch/federation/server.sh", "--keys", keys, "--clients", "1", "--port", port, *python],
            ["launch/node.sh", *node, "--port", port, "diloco.py:smoke"],
        ):
            done = launch(*command)
            assert (done.returncode, done.stdout) == (2, "")
            own = f"launch: error: --port = '{port}' is not allowed: a port that no other"
            node_said = f"lowcomm: error: --port = {port} is not allowed: a port of 127.0.0.1 that is free"
            assert done.stderr.startswith((own, node_said))
            assert done.stderr.count("\n") == 1
