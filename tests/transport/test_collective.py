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

from tests.support import gloo_worker
from tests.support.runs import ROOT, islands_environment, start, wait


def run_job(job: str, processes: int, out: Path, prefix: tuple[str, ...] = ()) -> dict[int, Any]:
    """Start the ranks by hand (no agent that would stop the others), wait, return what each wrote.

    prefix: a command that runs the ranks, all of them, in a place of their own.
    """
    variables = [{**one, "NUMBA_NUM_THREADS": "1"} for one in islands_environment(processes)]
    if prefix:
        _run_behind(prefix, [sys.executable, "-m", "tests.support.gloo_worker", job, str(out)], variables)
    else:
        log = out / "log"
        started = [start(gloo_worker.run, (job, str(out)), log, one) for one in variables]
        for child in started:
            wait(child, log)
        assert any(p.is_file() for p in out.glob("*.json")), log.read_text(encoding="utf-8")
    return {int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in out.glob("*.json")}


def _run_behind(prefix: tuple[str, ...], command: list[str], variables: list[dict[str, str]]) -> None:
    shared = {
        **os.environ,
        **variables[0],
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    }
    ranks = " ".join(f"RANK={one['RANK']} {' '.join(command)} &" for one in variables)
    script = f"ip link set lo up; {ranks} wait"
    done = subprocess.run(
        [*prefix, "sh", "-c", script], env=shared, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr


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
