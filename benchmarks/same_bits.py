"""Every packaged recipe as real processes under torchrun and simulated in one: final weights and counted bytes.

    python -m benchmarks.same_bits [--islands 3] [--steps 24] [--only compressed]

Short runs of the nano preset, so that all recipes take minutes. Writes benchmarks/results/same_bits.json, one row per
recipe; ends with 1 if a recipe's two runs differ in a bit of the weights or in a byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, write_result
from lowcomm.recipe import packaged

SKIPPED = {
    "late_merge.py:late": "its schedule names the number of steps",
    "late_merge.py:smoke": "its schedule names the number of steps",
    "gossip.py:multigraph": "its delays are those of four islands",
    "adaptive.py:bits": "it decides by the clock",
    "adaptive.py:low_rank": "it decides by the clock",
}
"""Recipes that can't be cut to so few steps or are not meant to give the same bits twice."""
FAULTY_1 = ("--sync.aggregator.first.faulty", "1", "--sync.aggregator.then.faulty", "1")
EXTRA = {
    "streaming.py": ("--sync.schedule.fragments", "2", "--sync.schedule.delay", "2"),
    "diloco.py:warmup": ("--sync.schedule.warmup-steps", "8"),
    "robust.py": ("--sync.aggregator.faulty", "0"),
    "robust.py:trimmed": (),
    "robust.py:clipped": (),
    "robust.py:reputation": (),
    "robust.py:smoothed": (),
    "robust.py:adapters": ("--sync.aggregator.faulty", "0", "--sync.aggregator.best", "2"),
    "attacks.py": ("--sync.allow-attack", "--sync.attack.islands", "0", *FAULTY_1),
    "attacks.py:smoke": ("--sync.allow-attack", "--sync.attack.islands", "0"),
    "late_merge.py:growing": ("--sync.schedule.growth", "1.5"),
}
"""Flags that make a recipe fit so few steps, islands and layers, by file or recipe."""


def summary_of(command: str, recipe: str, islands: int, steps: int, directory: Path) -> dict[str, Any]:
    """summary.json of a short run."""
    file, _, function = recipe.partition(":")
    arguments = [
        f"recipes/{recipe}",
        *EXTRA.get(recipe, EXTRA.get(file, ())),
        "--islands",
        str(islands),
        "--steps",
        str(steps),
    ]
    arguments += ["--model.preset", "nano", "--data.seq-len", "64", "--data.validation-sequences", "16"]
    arguments += ["--sync.every", "1" if function == "distributed_lion" else "8"]
    arguments += ["--run-dir", str(directory), "--threads", "1", "--no-tensorboard"]
    arguments += ["--checkpoint.every-rounds", "None", "--checkpoint.no-export", "--eval.every", "None"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    full = [sys.executable, "-m", "lowcomm.cli", command, *arguments]
    done = subprocess.run(full, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{recipe} failed under {command}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads((directory / "summary.json").read_text(encoding="utf-8"))


def compare(recipe: str, islands: int, steps: int) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as scratch:
        real, simulated = (
            summary_of(command, recipe, islands, steps, Path(scratch) / command) for command in ("train", "simulate")
        )
    keys = ("weights_sha256", "bytes_sent", "bytes_received")
    return {
        "recipe": recipe,
        "islands": islands,
        "steps": steps,
        "rounds": real["rounds"],
        "same_weights": real["weights_sha256"] == simulated["weights_sha256"],
        "same_bytes": all(real[k] == simulated[k] for k in keys[1:]),
        **{k: real[k] for k in keys},
    }


def main() -> None:
    """Compare, write the result, say what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--islands", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    options = parser.parse_args()
    names = [r.name for r in packaged()]
    chosen = [n for n in names if options.only in n and n not in SKIPPED and not n.endswith(":pretrain")]
    rows: list[dict[str, Any]] = []
    for name in chosen:
        rows.append(compare(name, options.islands, options.steps))
        print(name, "same" if rows[-1]["same_weights"] and rows[-1]["same_bytes"] else "DIFFERS", flush=True)
    command = f"python -m benchmarks.same_bits --islands {options.islands} --steps {options.steps}"
    print(write_result("same_bits", command if not options.only else f"{command} --only {options.only}", rows))
    if not all(r["same_weights"] and r["same_bytes"] for r in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
