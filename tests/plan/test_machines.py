"""The machines of a plan: ranks, memory, backend and the commands that start it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.cli import main
from lowcomm.plan import codecs as coded
from lowcomm.plan.machines import ANCHOR_BYTES, MOMENTUM_BYTES, SYNC_BYTES, USABLE, machines_for
from lowcomm.plan.runtime import Job, Settings
from lowcomm.types import ConfigError
from tests.support.runs import ROOT

JOB = Job(parameters=10**9, islands=4, step_s=1.5, steps=1000)
FP32 = Settings(every=30, codec=coded.FP32)
GB = 1e9


def test_what_the_sync_takes_is_what_was_measured() -> None:
    row = json.loads((ROOT / "benchmarks" / "results" / "core.json").read_text(encoding="utf-8"))["rows"][-1]
    assert 4 * row["memory_state_of_shard"] == ANCHOR_BYTES + MOMENTUM_BYTES
    assert pytest.approx(4 * row["memory_sync_of_shard"], rel=0.05) == SYNC_BYTES


def test_a_model_that_fits_has_one_rank_and_nccl() -> None:
    found = machines_for(JOB, FP32, 80 * GB, 8)
    assert (found.ranks, found.nodes, found.backend, found.cpu_bytes, found.fits) == (1, 1, "NCCL", 0.0, True)
    assert found.gpu_bytes == pytest.approx(28.6 * GB)
    assert machines_for(JOB, replace(FP32, codec=coded.INT4), 80 * GB, 8).gpu_bytes == pytest.approx(32.6 * GB)
    streams = machines_for(JOB, replace(FP32, streams=4), 80 * GB, 8)
    assert streams.backend == "gloo", "several connections are gloo's"
    assert streams.gpu_bytes == pytest.approx(16 * GB) and streams.cpu_bytes == pytest.approx(12.6 * GB)


@pytest.mark.parametrize("parameters", [10**6, 10**9, 5 * 10**9, 7 * 10**10, 10**12])
@pytest.mark.parametrize("per_node", [1, 4, 6, 8])
def test_the_fewest_ranks_that_fit(parameters: int, per_node: int) -> None:
    found = machines_for(replace(JOB, parameters=parameters), FP32, 80 * GB, per_node)
    assert found.fits and found.gpu_bytes <= USABLE * 80 * GB
    assert found.ranks == found.nodes * found.ranks_per_node and found.ranks_per_node <= per_node
    assert found.kind == ("fsdp" if 16 * parameters > USABLE * 80 * GB else "ddp")
    if found.ranks > per_node:  # what half of them, rounded to whole nodes, would not hold
        assert (
            16 * parameters / (found.ranks // 2 - found.ranks // 2 % per_node or 1) > USABLE * 80 * GB
            or found.nodes == 2
        )


def test_ranks_that_are_given() -> None:
    assert machines_for(JOB, FP32, 80 * GB, 8, 16).kind == "ddp"
    assert not machines_for(replace(JOB, parameters=7 * 10**10), FP32, 80 * GB, 8, 8).fits
    with pytest.raises(ConfigError, match=r"--ranks = 12 is not allowed: up to 8, or a multiple of it"):
        machines_for(JOB, FP32, 80 * GB, 8, 12)


def test_the_launch_command_is_one_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--parameters", "7e10", "--islands", "4", "--step-s", "15", "--rate-mbit", "2000", "--rtt-ms", "50"]
    plain = tmp_path / "plan.py"
    assert main(["plan", *words, "--recipe", str(plain)]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("  launch/node.sh ")]
    command = shlex.split(line)
    assert command[command.index("--nodes") + 1] == "16" and command[command.index("--ranks") + 1] == "8"
    assert command[command.index("--islands") + 1] == "4" and command[command.index("--island-size") + 1] == "32"
    known = (ROOT / "launch" / "node.sh").read_text(encoding="utf-8")
    recipe = command.index(f"{plain}:plan")
    assert all(word in known for word in command[:recipe] if word.startswith("--"))
    assert main(["recipes", "check", *command[recipe:]]) == 0
    assert "gloo between islands" in shown and "(FSDP2)" in shown and "16 nodes in all" in shown
