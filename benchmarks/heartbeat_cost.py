"""Measures what heartbeats cost beside training: the same run with and without them, in turns.

    python -m benchmarks.heartbeat_cost [--pairs 6]

`lowcomm train` with two nano islands: 2 ms a step and a sync every 8, where a thread that often wakes up shows most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, write_result

STEPS = 2048
BEATS = ("1.0", "None")
"""Of `--sync.heartbeat-s`: the default, and off."""


def run(heartbeat_s: str, place: Path) -> float:
    """Seconds of an inner step, its share of the syncs included."""
    command = [sys.executable, "-m", "lowcomm.cli", "train", f"{ROOT / 'benchmarks' / 'faults_recipe.py'}:plain"]
    flags = ["--islands", "2", "--steps", str(STEPS), "--sync.heartbeat-s", heartbeat_s, "--run-dir", str(place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    more = ["--checkpoint.every-rounds", "None", "--checkpoint.every-s", "None", "--log-every", str(STEPS)]
    subprocess.run([*command, *flags, *more], cwd=ROOT, env=environment, check=True, capture_output=True)
    return json.loads((place / "summary.json").read_text(encoding="utf-8"))["wall_s"] / STEPS


def main() -> None:
    """Run pairs in turns and write their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as scratch:
            order = BEATS if pair % 2 else BEATS[::-1]
            step_s = {beat: run(beat, Path(scratch) / f"run-{beat}") for beat in order}
        rows.append({"pair": pair, "step_s": step_s["1.0"], "without_s": step_s["None"]})
        rows[-1]["ratio"] = rows[-1]["step_s"] / rows[-1]["without_s"]
        print(rows[-1], flush=True)
    print(f"median ratio {statistics.median(row['ratio'] for row in rows):.4f}")
    write_result("heartbeat_cost", "python -m benchmarks.heartbeat_cost", rows)


if __name__ == "__main__":
    main()
