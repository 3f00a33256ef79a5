"""Seconds of a federated round beyond the training itself: lowcomm beside pfl and Flower, 50 clients of trivial work.

    python -m benchmarks.fed_overhead [--clients 50] [--peers DIR]

Every package simulates the same federation on this machine: a linear model, ten samples and one SGD step per client,
FedAvg with equal weights. They take turns, in processes of their own, and must end with the same weights. `--peers DIR`
holds the others, without it only lowcomm is measured:

    pip install --target DIR "flwr[simulation]>=1.42" && pip install --no-deps --target DIR pfl prv-accountant

Writes benchmarks/results/fed_overhead.json and its table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, write_result_and_table

PACKAGES = {"lowcomm": "federated_lowcomm", "pfl": "federated_pfl", "Flower": "federated_flower"}
TOLERANCE = 1e-4
"""Between the weights of two packages: they sum in other orders."""


def run(worker: str, rounds: int, clients: int, peers: Path | None) -> dict[str, Any]:
    """One process of one package."""
    places = [str(ROOT), str(ROOT / "kernels"), *([] if peers is None else [str(peers.resolve())])]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", f"benchmarks.peers.{worker}", str(rounds), str(clients)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1200)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{worker} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def table(result: dict[str, Any]) -> str:
    """One line per package."""
    rows = result["rows"]
    lines = [
        "| package | seconds per round, median | fastest to slowest process | against lowcomm |",
        "|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['package']} | {r['round_s']:.4f} | {r['fastest_s']:.4f} to {r['slowest_s']:.4f} "
            f"| {r['round_s'] / rows[0]['round_s']:.1f}x |"
        )
    lines.append(
        f"\n{rows[0]['clients']} simulated clients, one SGD step on ten samples each. `{result['command']}`, "
        f"{result['hardware']['cpu']}, {result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Let the packages take turns; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=None, help="directory with pfl and flwr")
    options = parser.parse_args()
    packages = PACKAGES if options.peers is not None else {"lowcomm": PACKAGES["lowcomm"]}
    medians: dict[str, list[float]] = {name: [] for name in packages}
    for turn in range(options.turns):
        weights: dict[str, list[float]] = {}
        for name, worker in packages.items():
            found = run(worker, options.rounds, options.clients, options.peers if name != "lowcomm" else None)
            medians[name].append(statistics.median(found["round_s"]))
            weights[name] = found["weights"]
            print(f"turn {turn}: {name} {medians[name][-1]:.4f} s", flush=True)
        for name, values in weights.items():
            apart = max(abs(a - b) for a, b in zip(values, weights["lowcomm"], strict=True))
            if not apart <= TOLERANCE:
                raise SystemExit(f"{name} trained something else: weights differ by {apart:.3g}")
    rows = [
        {
            "package": name,
            "clients": options.clients,
            "rounds": options.rounds,
            "turns": options.turns,
            "round_s": statistics.median(values),
            "fastest_s": min(values),
            "slowest_s": max(values),
        }
        for name, values in medians.items()
    ]
    command = f"python -m benchmarks.fed_overhead --clients {options.clients} --peers DIR"
    print(write_result_and_table("fed_overhead", command, rows, table))


if __name__ == "__main__":
    main()
