"""Run a recipe across shaped hosts under torchrun, and compare counted bytes with the interfaces' own.

python -m benchmarks.netlab --hosts 2 --rate-mbit 100 --delay-ms 25 recipes/diloco.py:smoke [FLAGS ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.netlab.lab import ROOT, Lab, Link


def run_recipe(lab: Lab, recipe: Sequence[str], run_dir: Path, threads: int = 1) -> dict[str, float]:
    """The summary's bytes and seconds beside what the interfaces carried (mean per host)."""
    before = [lab.counted_bytes(h) for h in range(1, lab.hosts + 1)]
    children = []
    for host in range(1, lab.hosts + 1):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(lab.hosts), "--nproc-per-node", "1"),
            *("--node-rank", str(host - 1), "--master-addr", "10.78.0.1", "--master-port", "29511"),
            *("-m", "lowcomm.cli", "train", *recipe, "--run-dir", str(run_dir), "--threads", str(threads)),
        ]
        environment = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
        children.append(lab.start(host, command, environment, run_dir.parent / f"host{host}.log"))
    codes = [child.wait() for child in children]
    if any(codes):
        raise SystemExit(f"hosts ended with {codes}; see {run_dir.parent}/host1.log")
    after = [lab.counted_bytes(h) for h in range(1, lab.hosts + 1)]
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    carried = sum(b[0] - a[0] for a, b in zip(before, after, strict=True)) / lab.hosts
    keys = ("bytes_sent", "wall_s", "blocked_s", "utilisation", "rounds", "val_bpb")
    return {**{k: summary[k] for k in keys}, "interface_sent_bytes": carried}


def main() -> None:
    """One run, its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rate-mbit", type=float, default=None, help="each way; left out: unlimited")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way")
    parser.add_argument("--loss", type=float, default=0.0, help="part of the packets, 0 to 1")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/netlab"))
    parser.add_argument("recipe", nargs=argparse.REMAINDER, help="recipe and flags, as for lowcomm train")
    options = parser.parse_args()
    link = Link(rate_mbit=options.rate_mbit, delay_ms=options.delay_ms, loss=options.loss)
    run_dir = options.run_dir.resolve()
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with Lab(options.hosts, link) as lab:
        print(json.dumps(run_recipe(lab, options.recipe, run_dir), indent=2))


if __name__ == "__main__":
    main()
