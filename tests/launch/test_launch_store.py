"""Independent islands on Kubernetes and SkyPilot: their files are read, and start what they say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from lowcomm.cli import main

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


def test_the_job_fits_the_schema_and_joins(capsys: pytest.CaptureFixture[str]) -> None:
    job = yaml.safe_load((LAUNCH / "k8s-store.yaml").read_text(encoding="utf-8"))
    kubernetes_validate.validate(job, "1.34", strict=True)
    spec = job["spec"]
    assert "completions" not in spec, "one pod that saw the end ends the Job"
    pod = spec["template"]["spec"]
    (island,) = pod["containers"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"] == {
        "containerName": island["name"], "operator": "In", "values": [2],
    }  # fmt: skip
    assert island["command"] == ["lowcomm", "join"] and "ports" not in island
    words = [word.replace("$(URL)", "/nowhere") for word in island["args"]]
    assert main(["join", *words]) == 2
    assert "there is no such directory" in capsys.readouterr().err
    island["enw"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="enw"):
        kubernetes_validate.validate(job, "1.34", strict=True)


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        ("0", "", "join s3://bucket/run --threads 2"),
        ("8", "spot-1", "join s3://bucket/run --name spot-1 --threads 2 --island.size 8"),
    ],
)
def test_skypilots_task_keeps_an_island_alive(gpus: str, name: str, expected: str) -> None:
    task = yaml.safe_load((LAUNCH / "sky-store.yaml").read_text(encoding="utf-8"))
    assert task["resources"]["use_spot"] is True and "ports" not in task["resources"]
    script = (
        task["run"]
        .replace("launch/spot.sh", "launch/spot.sh --dry-run")
        .replace("~/lowcomm-venv/bin/python", "python3")
    )
    env = {**task["envs"], "URL": "s3://bucket/run", "FLAGS": "--threads 2", "NAME": name, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{script}"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**env, "SKYPILOT_NUM_GPUS_PER_NODE": gpus},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(expected)
