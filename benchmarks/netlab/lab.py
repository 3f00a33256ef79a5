"""A laboratory of hosts: bring up, shape, run, count, tear down. Needs root, iproute2 and /dev/net/tun."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(tempfile.gettempdir()) / "lowcomm-netlab.lock"


@dataclass(frozen=True, kw_only=True)
class Link:
    """What every host's line to the star is like."""

    rate_mbit: float | None = None
    """Speed each way, in 10^6 bits per second; None: as fast as the machine."""
    delay_ms: float = 0.0
    """One way: half of the round trip."""
    loss: float = 0.0
    """Part of the packets that is lost, 0 to 1."""
    queue_ms: float = 200.0
    """Longest wait for a line before packets are dropped."""
    cut: tuple[tuple[int, int], ...] = ()
    """Pairs of hosts (from 1) that can't reach each other."""


def why_not() -> str | None:
    """Why there can be no laboratory here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip is missing: install iproute2"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing: load the kernel's tun module"
    return None


def reshape(control: Path, link: Link) -> None:
    """Write the router's settings anew, whole at any time."""
    new = control.with_suffix(".new")
    new.write_text(json.dumps(asdict(link)), encoding="utf-8")
    new.rename(control)


class Lab:
    """`with Lab(2) as lab:` has hosts 1 and 2, 10.78.0.1 and 10.78.0.2 on tun0, all gone at the end."""

    def __init__(self, hosts: int, link: Link | None = None) -> None:
        reason = why_not()
        if reason is not None:
            raise SystemExit(f"no shaped network here: {reason}")
        self.hosts = hosts
        self.directory = Path(tempfile.mkdtemp(prefix="netlab-"))
        self.router: subprocess.Popen[str] | None = None
        self.lock: TextIO | None = None
        self.ready = False
        self.shape(link or Link())

    def __enter__(self) -> Lab:
        self.lock = LOCK.open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # names and addresses are those of the machine: one laboratory at a time
        command = [sys.executable, "-m", "benchmarks.netlab.router", str(self.hosts), str(self.control)]
        self.router = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.router.stdout is not None
        self.ready = self.router.stdout.readline().strip() == "ready"
        if not self.ready:
            self.close()
            raise SystemExit(
                "the router did not start: are there namespaces lowcomm1 ... left? ip netns list, then ip netns del"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def control(self) -> Path:
        """What the router reads, again at each change."""
        return self.directory / "control.json"

    def shape(self, link: Link) -> None:
        """Change all lines, also while something runs."""
        reshape(self.control, link)

    def start(
        self, host: int, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Run `command` on host `host` (from 1); gloo uses the shaped line."""
        full = {**os.environ, "GLOO_SOCKET_IFNAME": "tun0", "TP_SOCKET_IFNAME": "tun0", **environment}
        with log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", f"lowcomm{host}", *command], cwd=ROOT, env=full, stdout=out, stderr=out
            )

    def run_group(self, arguments: Sequence[str], port: int, directory: Path) -> None:
        """`python ARGUMENTS` on every host as one rank each of a group. Raises SystemExit if one fails."""
        children = []
        for host in range(1, self.hosts + 1):
            environment = {
                "RANK": str(host - 1),
                "WORLD_SIZE": str(self.hosts),
                "MASTER_ADDR": "10.78.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            }
            children.append(self.start(host, [sys.executable, *arguments], environment, directory / f"host{host}.log"))
        codes = [child.wait() for child in children]  # of all, before the laboratory goes
        if any(codes):
            raise SystemExit((directory / "host1.log").read_text(encoding="utf-8")[-4000:])

    def counted_bytes(self, host: int) -> tuple[int, int]:
        """(sent, received) by the host's own interface, packet headers included."""
        text = subprocess.run(
            ["ip", "netns", "exec", f"lowcomm{host}", "cat", "/proc/net/dev"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        fields = next(line for line in text.splitlines() if line.strip().startswith("tun0:")).split(":")[1].split()
        return int(fields[8]), int(fields[0])

    def close(self) -> None:
        """Take everything down; safe to call twice."""
        if self.router is not None:
            self.router.kill()
            self.router.communicate()
            self.router = None
        if self.ready:  # else what is there was not made here
            for host in range(1, self.hosts + 1):
                subprocess.run(["ip", "netns", "del", f"lowcomm{host}"], capture_output=True, check=False)
            self.ready = False
        if self.lock is not None:
            self.lock.close()
            self.lock = None
        shutil.rmtree(self.directory, ignore_errors=True)
