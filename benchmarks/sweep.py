"""The local-SGD scaling law through small runs, and how well it predicts a size that it has not seen.

    python -m benchmarks.sweep [--steps 800] [--seeds 0]

One `lowcomm sweep` with one thread: equal tokens in every run, shared out over the islands. An interrupted call goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import ROOT, write_result

SIZES, HOLD_OUT, ISLANDS, EVERY, BATCH, MOMENTUM = "32,48,nano,80", "112", "1,2,4", "16,64", 8, 0.6


def main() -> None:
    """Write benchmarks/results/sweep.json: one row per run, one for the fit, one per prediction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/sweep"))
    options = parser.parse_args()
    command = [
        *(sys.executable, "-m", "lowcomm.cli", "sweep", "recipes/diloco.py:pretrain_cpu"),
        *("--sizes", SIZES, "--hold-out", HOLD_OUT, "--islands", ISLANDS, "--every", EVERY, "--seeds", options.seeds),
        *("--batch", str(BATCH), "--out", str(options.work_dir.resolve()), "--steps", str(options.steps)),
        *("--sync.outer.momentum", str(MOMENTUM), "--threads", "1", "--eval.every", "None", "--log-every", "50"),
        *("--checkpoint.every-rounds", "None"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    found = json.loads((options.work_dir / "sweep.json").read_text(encoding="utf-8"))
    rows = [{"kind": "run", **row} for row in found["rows"]]
    rows += [{"kind": "fit", **found["fit"]}] + [{"kind": "prediction", **row} for row in found["held_out"]]
    told = f"python -m benchmarks.sweep --steps {options.steps} --seeds {options.seeds}"
    print(write_result("sweep", told, rows))


if __name__ == "__main__":
    main()
