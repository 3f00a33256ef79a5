"""The kernels' tables: CPU speed as a share of copy, what the ahead-of-time compiler makes of them, GPU speed.

    python -m benchmarks.kernels cpu [--elements 67108864] [--threads 2] [--repeats 7] [--peers DIR]
    python -m benchmarks.kernels aot
    python -m benchmarks.kernels gpu

Runs the scripts of kernels/bench and writes benchmarks/results/kernels_cpu.json, kernels_aot.json or kernels_gpu.json,
each with its table. `--peers`: a directory that holds bitsandbytes and hivemind, for `pip install --no-deps --target`;
left out, they are timed if they can be imported. `aot` needs no GPU; `gpu` without one says so and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, write_result
from benchmarks.kernels_tables import write_kernels_table

SCRIPTS = {"cpu": ("dense", "sparse", "compiled", "peers"), "gpu": ("dense", "sparse"), "aot": ("aot",)}


def collect(script: str, arguments: tuple[str, ...], peers: Path | None) -> list[dict[str, Any]]:
    """The rows that kernels/bench/SCRIPT.py prints.

    A process of its own: Triton's interpreter, which the tests switch on, and its compiler can't share one.
    Raises SystemExit with the exit code of a script that failed; it has said why on stderr.
    """
    path = [str(ROOT / "kernels"), *([] if peers is None else [str(peers)])]
    inherited = os.environ.get("PYTHONPATH")
    path += [] if inherited is None else [inherited]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.pathsep.join(path)
    }
    command = [sys.executable, str(ROOT / "kernels" / "bench" / f"{script}.py"), *arguments]
    rows: list[dict[str, Any]] = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                rows.append(json.loads(line))
                print(line, end="", flush=True)
    if child.returncode != 0:
        raise SystemExit(child.returncode)
    return rows


def main() -> None:
    """Run the scripts of one table; write the result and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tuple(SCRIPTS))
    parser.add_argument("--elements", type=int, default=64 << 20, help="fp32 elements of the dense tensors")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of copy and op; the median counts")
    parser.add_argument("--peers", type=Path, default=None, help="directory with bitsandbytes and hivemind")
    options = parser.parse_args()
    arguments: tuple[str, ...] = ()
    if options.table != "aot":
        arguments = tuple(f"--{n}={getattr(options, n)}" for n in ("elements", "threads", "repeats"))
        arguments += ("--device=cuda",) if options.table == "gpu" else ()
    rows = [
        r
        for script in SCRIPTS[options.table]
        for r in collect(script, arguments, options.peers if script == "peers" else None)
    ]
    command = " ".join(("python -m benchmarks.kernels", options.table, *arguments))
    path = write_result(f"kernels_{options.table}", command, rows)
    print(path, write_kernels_table(path))


if __name__ == "__main__":
    main()
