"""launch/node.sh on two hosts of the laboratory: what listens there, and what a third host can do with it."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.netlab import Lab, why_not
from tests.launch.test_launch_node import RECIPE, left_behind, wait_for
from tests.support.runs import ROOT, write_corpus
from tests.transport.test_listeners import listening, of_run

REASON = why_not()
pytestmark = [pytest.mark.skipif(REASON is not None, reason=f"no hosts here: {REASON}"), pytest.mark.slow]
PORT = 29950


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three hosts that reach each other, a recipe and a secret."""
    base = tmp_path_factory.mktemp("nodes")
    (base / "corpus").mkdir()
    (base / "tiny.py").write_text(RECIPE.format(corpus=str(write_corpus(base / "corpus"))), encoding="utf-8")
    (base / "secret").write_text("what-all-nodes-of-a-run-have-in-common\n", encoding="utf-8")
    (base / "secret").chmod(0o600)
    with Lab(3):
        yield base


def on_host(host: int, *command: str, tag: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", f"lowcomm{host}", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "LAUNCH_TEST": tag},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_node(base: Path, rank: int) -> subprocess.Popen[str]:
    words = ["--nodes", "2", "--node-rank", str(rank), "--master", "10.78.0.1", "--port", str(PORT)]
    words += ["--address", f"10.78.0.{rank + 1}", "--secret", str(base / "secret"), "--python", sys.executable]
    flags = ["--run-dir", str(base / f"run{rank}"), "--steps", "100000", "--log-every", "1"]
    return on_host(rank + 1, "bash", "launch/node.sh", *words, f"{base}/tiny.py:two", *flags, tag=f"{base} node {rank}")


def dotted(address: str) -> str:
    """An address as /proc/net/tcp has it, if it is not resolved already."""
    return address if "." in address else str(ipaddress.IPv4Address(int(address, 16).to_bytes(4, "little")))


def attack(base: Path, address: str, *ports: int) -> dict[str, str]:
    """What host 3 finds: overwritten, closed or silent."""
    intruder = str(ROOT / "tests" / "support" / "intruder.py")
    process = on_host(3, sys.executable, "-I", intruder, address, *map(str, ports), tag=f"{base} intruder")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(out)


def test_nobody_else_can_use_what_two_nodes_listen_on(base: Path) -> None:
    """The key of torchrun's rendezvous is not overwritten, before the run and while it trains; then it saves."""
    nodes = [start_node(base, 0)]
    tags = [f"{base} node {rank}" for rank in (0, 1)]
    while not any(port == PORT for _, port in (listening(of_run(tags[0])) if of_run(tags[0]) else {}).values()):
        assert nodes[0].poll() is None
    assert attack(base, "10.78.0.1", PORT) == {str(PORT): "closed"}
    nodes.append(start_node(base, 1))
    wait_for(nodes[0], "step ")
    for rank, tag in enumerate(tags):
        own = f"10.78.0.{rank + 1}"
        sockets = list(listening(of_run(tag)).values())
        assert {dotted(address) for address, _ in sockets} == {own}, "one address, never all"
        ports = [port for _, port in sockets]
        assert len(ports) == 2 - rank, "gloo's, and the rendezvous on node 0"
        expected = {str(port): "closed" if port == PORT else "silent" for port in ports}
        assert attack(base, own, *ports) == expected
    nodes[1].send_signal(signal.SIGTERM)
    said = [node.communicate(timeout=100) for node in nodes]
    assert [node.returncode for node in nodes] == [3, 3], said
    for rank in (0, 1):
        assert list((base / f"run{rank}" / "checkpoints").glob(f"*-stop0/island-{rank:05d}")), said
        assert left_behind(tags[rank]) == []
