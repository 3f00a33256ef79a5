"""The shaped network: the link model by itself, and a real laboratory where the machine allows one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.netlab import Lab, Link, why_not
from benchmarks.netlab.router import Router


def router(**settings: object) -> Router:
    """Two hosts without devices."""
    made = object.__new__(Router)
    made.settings = dict(settings)
    made.descriptors = {1: 11, 2: 12}
    made.out_free_s, made.in_free_s = {1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0}
    made.waiting = []
    made.order = iter(range(1000))  # type: ignore[assignment]
    return made


def arrivals(made: Router, start: float) -> list[float]:
    return sorted(at - start for at, *_ in made.waiting)


def test_packets_leave_one_after_the_other_at_the_rate_and_arrive_after_the_delay() -> None:
    made, start = router(rate_mbit=8, delay_ms=25, queue_ms=1000), time.monotonic()
    for _ in range(3):
        made.schedule(1, 2, bytes(10_000))  # 10 ms on each of both lines
    assert arrivals(made, start) == pytest.approx([0.045, 0.055, 0.065], abs=3e-3)


def test_an_unlimited_line_only_delays() -> None:
    made, start = router(delay_ms=5), time.monotonic()
    made.schedule(1, 2, bytes(60_000))
    assert arrivals(made, start) == pytest.approx([0.005], abs=2e-3)


def test_a_full_queue_drops() -> None:
    made = router(rate_mbit=8, queue_ms=35)
    for _ in range(20):
        made.schedule(1, 2, bytes(10_000))
    assert 3 <= len(made.waiting) <= 5  # what waits longer than 35 ms is lost


def test_a_cut_link_and_total_loss_carry_nothing() -> None:
    for settings in ({"cut": [[2, 1]]}, {"loss": 1.0}):
        made = router(**settings)
        made.schedule(1, 2, bytes(100))
        assert not made.waiting


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert why_not() == "network namespaces need root"
    with pytest.raises(SystemExit, match="no shaped network here: network namespaces need root"):
        Lab(2)


SERVER = """
import socket
with socket.create_server(("10.78.0.1", 5001)) as server:
    server.settimeout(20)
    peer, _ = server.accept()
    with peer:
        while peer.recv(1 << 20):
            pass
        peer.close()
"""
CLIENT = """
import socket, time
start = time.monotonic()
while True:
    try:
        sock = socket.create_connection(("10.78.0.1", 5001), timeout=20)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
connected = time.monotonic()
sock.sendall(bytes(1_000_000))
sock.shutdown(socket.SHUT_WR)
sock.recv(1)
print((time.monotonic() - connected))
"""


@pytest.mark.skipif(why_not() is not None, reason=f"no shaped network here: {why_not()}")
def test_a_real_laboratory(tmp_path: Path) -> None:
    """1 MB at 40 Mbit/s takes 0.2 s and a round trip; the interfaces count it; nothing is left behind."""
    with Lab(2, Link(rate_mbit=40, delay_ms=10)) as lab:
        before = lab.counted_bytes(2)
        server = lab.start(1, [sys.executable, "-c", SERVER], {}, tmp_path / "server")
        client = lab.start(2, [sys.executable, "-c", CLIENT], {}, tmp_path / "client")
        assert (client.wait(30), server.wait(30)) == (0, 0), (tmp_path / "client").read_text()
        sent = lab.counted_bytes(2)[0] - before[0]
        assert json.loads(lab.control.read_text())["rate_mbit"] == 40
    assert 1_000_000 < sent < 1_050_000
    assert 0.2 < float((tmp_path / "client").read_text()) < 3  # slow start and a busy machine take their part
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert "lowcomm" not in left
