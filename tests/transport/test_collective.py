"""Real processes over gloo: bytes on the wire, and what happens when one differs or dies.

That they give the simulation's bits and count its bytes with every method stands in test_golden_rounds.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import free_port

ROOT = Path(__file__).resolve().parents[2]


def run_job(job: str, processes: int, out: Path, prefix: tuple[str, ...] = ()) -> dict[int, Any]:
    """Start the ranks by hand (no agent that would stop the others), wait, return what each wrote."""
    port = free_port()
    started = []
    command = [sys.executable, "-m", "tests.support.gloo_worker", job, str(out)]
    for rank in range(processes):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        }
        started.append((command, environment))
    if prefix:
        lines = [" ".join([*(f"{k}={e[k]}" for k in ("RANK",)), *c, "&"]) for c, e in started]
        shared = {k: v for k, v in started[0][1].items() if k != "RANK"}
        script = "ip link set lo up; " + " ".join(lines) + " wait"
        done = subprocess.run(
            [*prefix, "sh", "-c", script], env=shared, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    else:
        children = [subprocess.Popen(c, env=e, cwd=ROOT, stderr=subprocess.PIPE, text=True) for c, e in started]
        errors = [child.communicate(timeout=200)[1] for child in children]
        assert any(p.is_file() for p in out.glob("*.json")), errors
    return {int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in out.glob("*.json")}


def test_processes_with_unequal_numbers_of_batches_end_together(tmp_path: Path) -> None:
    results = run_job("uneven", 3, tmp_path)
    assert results[0] == results[1] == results[2]
    assert [rounds for rounds, _ in results[0].values()] == [4, 4]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None,
    reason="needs root, unshare (util-linux) and ip (iproute2) for a network of its own",
)
def test_counted_bytes_are_what_the_interface_carried(tmp_path: Path) -> None:
    """Two processes alone on their own loopback device. Overhead: TCP/IP headers and acknowledgements, gloo's 40-byte
    preambles: with 64 KB loopback segments well under 2 %."""
    results = run_job("bytes_on_the_wire", 2, tmp_path, prefix=("unshare", "--net"))
    counted = sum(r["counted"] for r in results.values())
    carried = max(r["interface"] for r in results.values())
    assert counted <= carried <= counted * 1.02
    assert all(1e7 < r["speed"] < 1e11 for r in results.values())  # bytes per second on the loopback device


def test_a_mismatch_is_refused_on_every_island_naming_both_sides(tmp_path: Path) -> None:
    """Another period or model is refused at the handshake; global weights that differ by a bit, at the next sync."""
    results = run_job("mismatch", 2, tmp_path)
    for seen in (results[0], results[1]):
        assert re.search(r"every: (4 against 5|5 against 4)", seen["period"])
        assert "tensors[scale]" in seen["shape"]
        assert "'() torch.float32'" in seen["shape"]
        assert "'(2,) torch.float32'" in seen["shape"]
        assert re.search(r"after round 1 \(step 8\) .* differ: middle\.weight on islands \[1\]", seen["bit"])


def test_survivors_of_a_killed_island_keep_their_work(tmp_path: Path) -> None:
    results = run_job("killed_peer", 3, tmp_path)
    assert sorted(results) == [0, 1]  # the third died
    for seen in results.values():
        assert "Nothing was committed" in seen["error"]
        assert seen["waited_s"] < 10
        assert (seen["round"], seen["pending"]) == (1, [0])
        assert seen["global_kept"]
        assert seen["local_kept"]
