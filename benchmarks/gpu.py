"""All that a GPU can tell, in one command and under eight minutes.

    make gpu        or        python -m benchmarks.gpu [--budget-s 440]

1. every Triton kernel against the eager reference (gpu_checks.py);
2. their speed as a share of the card's own copy, beside eager torch (kernels/bench), and bitsandbytes' and torchft's
   kernels where these packages can be imported;
3. the 30M and 150M shapes with DiLoCo, int4 streaming and SparseLoCo, two islands on the card, simulated and as
   processes over gloo: seconds of a step, an encode and a sync, peak memory (gpu_train.py).

Needs this checkout, torch >= 2.11 with numpy, and triton >= 3.6; no network and no other package. Without a GPU it says
so (exit code 2) and writes nothing. What the budget does not reach is left out, and the table says what.
Writes benchmarks/results/gpu.json and gpu.md; exit code 1 if a kernel gave other bytes than its reference.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.common import ROOT, write_result_and_table
from benchmarks.gpu_table import gpu_table

LEAST_TORCH, LEAST_TRITON = (2, 11), (3, 6)
PRESETS, METHODS = ("30m", "150m"), ("diloco", "int4", "sparseloco")
RESERVE_S = 20.0
"""A part is not begun with less than this left."""


def why_not() -> str | None:
    """Why nothing can be measured here; None: it can."""
    if version_of(torch.__version__) < LEAST_TORCH:
        return f"torch {torch.__version__} is too old: 2.11 or newer is needed"
    if not torch.cuda.is_available():
        return "no GPU here"
    if importlib.util.find_spec("triton") is None:
        return "triton is missing: 3.6 or newer is needed"
    import triton

    if version_of(triton.__version__) < LEAST_TRITON:
        return f"triton {triton.__version__} is too old: 3.6 or newer is needed"
    return None


def version_of(text: str) -> tuple[int, int]:
    """Major and minor."""
    major, minor = text.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()))


def parts() -> Iterator[tuple[str, list[str]]]:
    """Name and command of each part, in order: the short and important ones first."""
    python = sys.executable
    yield "checks", [python, "-m", "benchmarks.gpu_checks"]
    for script in ("dense", "sparse"):
        yield f"speed, {script}", [python, str(ROOT / "kernels" / "bench" / f"{script}.py"), "--device=cuda"]
    yield "speed, peers", [python, "-m", "benchmarks.gpu_peers"]
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for preset in PRESETS:
        for method in METHODS:
            told = ["benchmarks.gpu_train", "--preset", preset, "--method", method]
            yield f"train, {preset}, {method}, simulated", [python, "-m", *told]
            yield f"train, {preset}, {method}, processes", [*launcher, *told, "--processes"]


def environment() -> dict[str, str]:
    """Triton compiles, and finds the checkout."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))), "OMP_NUM_THREADS": "1"}


def run_part(name: str, command: Sequence[str], left_s: float) -> list[dict[str, Any]]:
    """The rows that a part prints; one row that says why where it failed or ran out of time."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=left_s, check=False
        )
        text, failed = done.stdout, done.returncode not in (0, 1) or (done.returncode == 1 and name != "checks")
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else (error.stdout or "")
        failed, why = True, [f"not done within {left_s:.0f} s"]
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    rows = [{"part": "speed", **row} for row in rows]
    rows += [{"part": "failed", "name": name, "why": why[0]}] if failed else []
    print(f"{name}: {len(rows)} rows in {time.monotonic() - start:.0f} s", flush=True)
    return rows


def hardware_row() -> dict[str, Any]:
    """The card and the versions."""
    import triton

    card = torch.cuda.get_device_properties(0)
    return {
        "part": "device",
        "name": card.name,
        "memory_bytes": card.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def main() -> None:
    """Run all parts that the budget reaches; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=440.0, help="seconds for all parts together")
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"{reason}: nothing measured, nothing written", file=sys.stderr)
        raise SystemExit(2)
    end, rows = time.monotonic() + options.budget_s, [hardware_row()]
    for name, command in parts():
        left_s = end - time.monotonic()
        if left_s < RESERVE_S:
            rows.append({"part": "failed", "name": name, "why": "the budget was spent"})
        else:
            rows += run_part(name, command, left_s)
    print(write_result_and_table("gpu", "python -m benchmarks.gpu", rows, gpu_table))
    raise SystemExit(1 if any(r["part"] == "check" and not r["same"] for r in rows) else 0)


if __name__ == "__main__":
    main()
