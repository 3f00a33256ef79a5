"""launch/sites for real: keys, configuration and a tunnel between two hosts of the laboratory, with its firewall."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.netlab import Lab, why_not
from tests.support.runs import ROOT

PATH = f"/usr/sbin:/usr/local/sbin:{os.environ['PATH']}"
MISSING = [tool for tool in ("wg", "wg-quick", "nft", "unshare") if shutil.which(tool, path=PATH) is None]
KERNEL = Path("/sys/module/wireguard").exists() or shutil.which("wireguard-go", path=PATH) is not None
REASON = (
    why_not()
    or (f"not installed: {', '.join(MISSING)}" if MISSING else None)
    or (None if KERNEL else "neither the kernel's WireGuard nor wireguard-go is here")
)
SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 5001)) as server:
    print("ready", flush=True)
    server.settimeout(30)
    peer, _ = server.accept()
    with peer:
        print(len(peer.recv(100)), flush=True)
"""
CLIENT = """
import socket
with socket.create_connection(("10.87.0.1", 5001), timeout=30) as sock:
    sock.sendall(b"x" * 64)
"""


def configure(*arguments: str | Path) -> str:
    command = ["bash", "launch/sites/configure.sh", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def inside(host: int, script: str, etc: Path) -> subprocess.CompletedProcess[str]:
    """On that host, whose /etc/wireguard is `etc` and nobody else's."""
    mounts = f"mount --bind {etc} /etc/wireguard; mkdir -p /run/wireguard; mount -t tmpfs none /run/wireguard"
    command = ["ip", "netns", "exec", f"lowcomm{host}", "unshare", "-m", "bash", "-ec", f"{mounts}; {script}"]
    return subprocess.run(
        command, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(REASON is not None, reason=f"no tunnel here: {REASON}")
def test_a_tunnel_carries_tcp_and_the_firewall_is_loaded(tmp_path: Path) -> None:
    Path("/etc/wireguard").mkdir(exist_ok=True)
    etc = {k: tmp_path / f"etc{k}" for k in (1, 2)}
    keys = {k: configure("key", "--directory", etc[k]) for k in etc}
    lines = f"north 10.78.0.1:51820 10.87.0.1 - {keys[1]}\nsouth - 10.87.0.2 - {keys[2]}\n"
    (tmp_path / "sites").write_text(lines, encoding="utf-8")
    configure("write", "--sites", tmp_path / "sites", "--out", tmp_path / "out")
    with Lab(2) as lab:
        try:
            for k, site in ((1, "north"), (2, "south")):
                for name in ("lowcomm0.conf", "lowcomm.nft"):
                    shutil.copy(tmp_path / "out" / site / name, etc[k])
                up = inside(k, "wg-quick up lowcomm0; nft list table inet lowcomm", etc[k])
                assert up.returncode == 0, up.stderr
                assert "tcp dport 1024-65535 drop" in up.stdout
            server = subprocess.Popen(
                ["ip", "netns", "exec", "lowcomm1", sys.executable, "-c", SERVER, "10.87.0.1"],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            client = lab.start(2, [sys.executable, "-c", CLIENT], {}, tmp_path / "client")
            assert client.wait(40) == 0, (tmp_path / "client").read_text()
            assert server.communicate(timeout=40)[0] == "64\n"
        finally:
            for k in etc:  # which ends wireguard-go too
                subprocess.run(["ip", "-n", f"lowcomm{k}", "link", "del", "lowcomm0"], check=False)
