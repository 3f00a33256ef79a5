"""Ranks of several machines: a stranger who takes an island's place while gloo's groups are made ends the run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from lowcomm.rendezvous.nodes import write_meeting
from lowcomm.rendezvous.server import KeyServer
from tests.launch.test_launch_node import RECIPE
from tests.support.runs import ROOT, write_corpus
from tests.transport.test_listeners import listening, of_run

SECRET = b"what-all-nodes-of-a-run-have-in-common"


def start_rank(rank: int, recipe: Path, store: Path, tag: str) -> subprocess.Popen[str]:
    """As a node's supervisor does."""
    own = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "LOWCOMM_STORE": str(store),
    }
    own |= {"GLOO_SOCKET_IFNAME": "lo", "TORCH_GLOO_LAZY_INIT": "0", "LAUNCH_TEST": tag, "OMP_NUM_THREADS": "1"}
    own |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return subprocess.Popen(
        [sys.executable, "-m", "lowcomm.cli", "train", f"{recipe}:two", "--run-dir", f"{recipe.parent}/run{rank}"],
        cwd=ROOT,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_port(process: subprocess.Popen[str], tag: str) -> int:
    """Of gloo, which listens until the other rank has come."""
    while process.poll() is None:
        for _, port in listening(of_run(tag)).values() if of_run(tag) else ():
            return port
    raise AssertionError(process.communicate()[0])


def test_a_stranger_in_an_islands_place_ends_the_run(tmp_path: Path) -> None:
    """It connects where rank 0 waits for rank 1, from an address that no node has; nothing is trained."""
    tmp_path.chmod(0o700)
    (tmp_path / "corpus").mkdir()
    recipe, tag = tmp_path / "tiny.py", str(tmp_path)
    recipe.write_text(RECIPE.format(corpus=str(write_corpus(tmp_path / "corpus"))), encoding="utf-8")
    with KeyServer("127.0.0.1", 0, SECRET) as server:
        store = write_meeting(tmp_path, *server.address, SECRET)
        first = start_rank(0, recipe, store, tag)
        port = wait_for_port(first, tag)
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.3", 0)) as stranger:
            second = start_rank(1, recipe, store, tag)
            said = [process.communicate(timeout=300)[0] for process in (first, second)]
            where = f"127.0.0.3:{stranger.getsockname()[1]} to 127.0.0.1:{port} of rank 0: nothing was trained"
    assert f"a process that is not of this run has connected from {where}" in said[0]
    assert first.returncode == 1, said
    assert second.returncode == 1 and "lowcomm: error: " in said[1], said
    assert not list(tmp_path.glob("run*/checkpoints/*"))
