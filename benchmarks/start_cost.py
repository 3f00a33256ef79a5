"""What it costs to start a run: ranks as copies of one process, and each started anew, in turns.

    python -m benchmarks.start_cost [--turns 5]

`lowcomm train` trains two and four islands of the smoke recipe for 32 steps on the CPU, with one thread each, and ends;
so does a run over a store in a directory. `wall_s`, `cpu_s`: medians of the whole command, with all its processes. To
be run on a calm machine: four minutes. Writes benchmarks/results/start_cost.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import write_result

COPIED = "import sys; from lowcomm.cli import main; sys.exit(main(sys.argv[1:]))"
ANEW = f"import lowcomm.run.forked as forked; forked._GPUS = ('/proc',); {COPIED}"
"""As on a machine with a GPU."""


def seconds(code: str, islands: int, store: bool) -> tuple[float, float]:
    """Wall-clock and processor seconds of one command."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["train", "diloco.py:smoke", "--islands", str(islands), "--steps", "32", "--no-tensorboard"]
        command += ["--run-dir", f"{directory}/run", *(["--store", f"{directory}/store"] if store else [])]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
        )  # fmt: skip
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """All three runs, both ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    rows: list[dict[str, object]] = []
    for islands, store in ((2, False), (4, False), (2, True)):
        seen: dict[str, list[tuple[float, float]]] = {"copied": [], "anew": []}
        for _ in range(turns):
            for ranks, code in (("copied", COPIED), ("anew", ANEW)):
                seen[ranks].append(seconds(code, islands, store))
        for ranks, pairs in seen.items():
            wall_s, cpu_s = (statistics.median(column) for column in zip(*pairs, strict=True))
            rows.append({"islands": islands, "store": store, "ranks": ranks, "wall_s": wall_s, "cpu_s": cpu_s})
            print(rows[-1], flush=True)
    print(write_result("start_cost", f"python -m benchmarks.start_cost --turns {turns}", rows))


if __name__ == "__main__":
    main()
