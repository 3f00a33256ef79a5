"""Real processes under faults: 25 of them, and the command's own word for what came of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def chaos(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, chaos.json and what was said; in a process of its own, which forks."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lowcomm.cli", "chaos", *arguments, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    path = tmp_path / "out" / "chaos.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return done.returncode, found, done.stdout + done.stderr


@pytest.mark.slow
def test_twenty_five_faults(tmp_path: Path) -> None:
    code, found, said = chaos(tmp_path, "--seed", "3", "--faults", "25", "--per-run", "13", "--for-s", "1")
    assert code == 0, said
    assert len(found["rows"]) == 25 and all(row["survived"] and row["replicas_equal"] for row in found["rows"])
    assert {row["rounds_lost"] for row in found["rows"]} == {0}
    assert "25 of 25 faults survived" in said
