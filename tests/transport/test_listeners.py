"""What a run on one machine leaves open: nobody but its own ranks can connect, and nothing listens for a rendezvous."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from lowcomm.membership import World, open_store
from lowcomm.run.ranks import Ended
from lowcomm.types import ConfigError
from tests.launch.test_launch_node import left_behind, recipe, start, wait_for
from tests.support.runs import ROOT, summary

__all__ = ["recipe"]  # a fixture
LISTEN = "0A"
ADDRESS = {"0100007F": "127.0.0.1"}

GUARD = """
import socket, sys
import torch.distributed as dist
from lowcomm.transport.listeners import close_listeners
from lowcomm.types import TransportError

open_socket = socket.create_server(("127.0.0.1", 0))
own = socket.create_connection(open_socket.getsockname())  # as a rank connects to itself and to the others
accepted = [open_socket.accept()[0]]
print(open_socket.getsockname()[1], flush=True)
if sys.stdin.readline().strip() == "intruder":
    accepted.append(open_socket.accept()[0])
try:
    close_listeners(dist.HashStore(), "groups", 0, 1)
    print("closed", flush=True)
except TransportError as error:
    print(error, flush=True)
own.sendall(b"still")
assert accepted[0].recv(5) == b"still"
sys.stdin.readline()
"""


@pytest.fixture
def guard() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", GUARD]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_nobody_can_connect_any_more(guard: subprocess.Popen[str]) -> None:
    with guard:
        port = int(hear(guard))
        say(guard, "nobody")
        assert hear(guard) == "closed"
        assert not reachable(port)
        say(guard, "")
    assert guard.returncode == 0


def test_who_connected_before_ends_the_run(guard: subprocess.Popen[str]) -> None:
    with guard:
        port = int(hear(guard))
        say(guard, "intruder")
        with socket.create_connection(("127.0.0.1", port)) as intruder:
            line = hear(guard)
            mine = intruder.getsockname()[1]
            assert line.startswith(
                f"a process that is not of this run has connected from 127.0.0.1:{mine} to 127.0.0.1:{port} of rank 0"
            )
            say(guard, "")
    assert guard.returncode == 0


def reachable(port: int) -> bool:
    """Whether this process can connect: a packet that is dropped is not answered."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.3):
            return True
    except OSError:
        return False


def listening(pids: list[int]) -> dict[int, tuple[str, int]]:
    """Address and port of every TCP socket on which these processes listen, by inode."""
    inodes: set[int] = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # it, or its file, is gone meanwhile
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                name = str(entry.readlink()) if entry.is_symlink() else ""
                if name.startswith("socket:"):
                    inodes.add(int(name[8:-1]))
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pids[0]}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and int(fields[9]) in inodes:
                address, _, port = fields[1].rpartition(":")
                found[int(fields[9])] = (ADDRESS.get(address, address), int(port, 16))
    return found


def of_run(tag: str) -> list[int]:
    """Processes with LAUNCH_TEST=tag."""
    mark, found = f"LAUNCH_TEST={tag}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def train(recipe: str, run: Path, tag: str) -> subprocess.Popen[str]:
    """`lowcomm train` of a run that does not end by itself."""
    flags = ["--steps", "100000", "--log-every", "1", "--run-dir", str(run), "--islands", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "lowcomm.cli", "train", recipe, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "LAUNCH_TEST": tag},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["lowcomm train", "launch/local.sh"])
def test_a_run_on_one_machine_has_no_open_port(how: str, recipe: str, tmp_path: Path) -> None:
    """Then it is stopped, saves, and nothing is left."""
    tag, run = str(tmp_path), tmp_path / "run"
    flags = ("--steps", "100000", "--log-every", "1", "--run-dir", str(run))
    process = train(recipe, run, tag) if how == "lowcomm train" else start(recipe, *flags, tag=tag)
    wait_for(process, "step ")
    open_sockets = listening(of_run(tag))
    assert {address for address, _ in open_sockets.values()} <= {"127.0.0.1"}, "gloo's, and nothing on other addresses"
    ports = [port for _, port in open_sockets.values()]
    assert [port for port in ports if reachable(port)] == []
    assert len(ports) == 2, "one of each rank's gloo: no store, no rendezvous"
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 3, out + errors
    assert summary(run)["status"] == "stopped"
    assert list((run / "checkpoints").glob("*-stop0/island-00001")), "island 1 is not in the checkpoint of the stop"
    assert left_behind(tag) == []


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_store_that_others_can_reach_is_refused(mode: int, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(ConfigError, match=r"LOWCOMM_STORE = .* a file in a directory of this user with mode 0700"):
        open_store(tmp_path / "open" / "store", 1.0)
    (tmp_path / "open").chmod(0o700)
    assert isinstance(open_store(tmp_path / "open" / "store", 1.0), dist.FileStore)
    with pytest.raises(ConfigError, match="is in no directory"):
        open_store(tmp_path / "none" / "store", 1.0)


def test_ranks_are_told_their_store(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World.from_environment().store is None
    monkeypatch.setenv("LOWCOMM_STORE", "/run/x/store")
    assert World.from_environment().store == Path("/run/x/store")


@pytest.mark.parametrize(
    ("failed", "codes", "code"),
    [
        ({}, {0: 0, 1: 0}, 0),
        ({1: 2}, {0: -15, 1: 2}, 2),
        ({1: 3}, {0: 3, 1: 3}, 3),
        ({}, {0: 3, 1: 3}, 3),
        ({}, {0: 3, 1: 0}, 3),
        ({1: -9}, {0: 3, 1: -9}, 1),
        ({1: 1, 0: 2}, {0: 2, 1: 1}, 1),
        ({}, {0: -9, 1: 3}, 1),
    ],
)
def test_one_exit_code_of_all_ranks(failed: dict[int, int], codes: dict[int, int], code: int) -> None:
    assert Ended(failed=failed, codes=codes, signal=None).code == code
