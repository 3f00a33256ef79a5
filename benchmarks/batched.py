"""Islands of a simulation in one forward and backward against one after another (nano preset, one thread).

    python -m benchmarks.batched [--steps 100]

Both trainers run in one process and take their steps in turn, data, clipping, AdamW and syncs (H = 16) included; ratios
are of neighbouring steps. Small batches show what starting kernels costs; with more tokens arithmetic takes over, which
the batched simulator can not make less. `max_loss_difference` is over all islands and steps from equal weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_result
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.model import ModelConfig
from lowcomm.run.assembly import World, assemble, preflight
from lowcomm.trainer import Loop

CELLS = [  # islands, sequences per island and step, tokens per sequence, steps as a fraction of those asked for
    (1, 2, 32, 1.0),
    (4, 2, 32, 1.0),
    (16, 2, 32, 1.0),
    (16, 4, 32, 1.0),
    (16, 8, 64, 0.5),
]
WARM_UP = 5


def build(directory: Path, islands: int, batch_size: int, seq_len: int, batched: bool) -> Loop:
    """A trainer that has taken no step yet."""
    config = RunConfig(
        islands=islands,
        steps=10_000,
        transport="simulated",
        batched=batched,
        threads=1,
        device="cpu",
        tensorboard=False,
        run_dir=directory / f"{islands}-{batch_size}-{seq_len}-{batched}",
        data=DataConfig(seq_len=seq_len, batch_size=batch_size),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=16),
        checkpoint=CheckpointConfig(export=False),
    )
    world = World.from_environment()
    config, data = preflight(config, world)
    return Loop(assemble(config, data, world))


def measure(loops: tuple[Loop, Loop], steps: int) -> tuple[list[tuple[float, float]], float]:
    """Seconds of each pair of steps, looped and batched, and the largest difference of an island's loss."""
    seconds: list[tuple[float, float]] = []
    difference = 0.0
    for step in range(steps):
        taken: list[float] = []
        for loop in loops if step % 2 == 0 else loops[::-1]:
            loop.journal.losses = [0.0] * len(loop.journal.losses)
            start = time.perf_counter()
            loop.step()
            taken.append(time.perf_counter() - start)
        looped_s, batched_s = taken if step % 2 == 0 else taken[::-1]
        seconds.append((looped_s, batched_s))
        difference = max(
            difference, *(abs(a - b) for a, b in zip(*(loop.journal.losses for loop in loops), strict=True))
        )
    return seconds[WARM_UP:], difference


def row(directory: Path, islands: int, batch_size: int, seq_len: int, steps: int) -> dict[str, Any]:
    """One row of the result."""
    loops = (
        build(directory, islands, batch_size, seq_len, batched=False),
        build(directory, islands, batch_size, seq_len, batched=True),
    )
    seconds, difference = measure(loops, steps)
    ratios = sorted(looped_s / batched_s for looped_s, batched_s in seconds)
    quarter = len(ratios) // 4
    return {
        "preset": "nano",
        "parameters": sum(p.numel() for p in loops[0].run.islands[0].model.parameters()),
        "islands": islands,
        "tokens_per_island_and_step": batch_size * seq_len,
        "steps": steps,
        "looped_s_per_step": statistics.median(s[0] for s in seconds),
        "batched_s_per_step": statistics.median(s[1] for s in seconds),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "ratio_of_sums": sum(s[0] for s in seconds) / sum(s[1] for s in seconds),
        "max_loss_difference": difference,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Write benchmarks/results/batched.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for islands, batch_size, seq_len, fraction in CELLS:
            rows.append(row(Path(directory), islands, batch_size, seq_len, round(options.steps * fraction)))
            print(rows[-1], flush=True)
    print(write_result("batched", f"python -m benchmarks.batched --steps {options.steps}", rows))


if __name__ == "__main__":
    main()
