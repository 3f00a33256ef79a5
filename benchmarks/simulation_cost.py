"""What the simulated transport costs beyond the models' own forward and backward (tiny preset, 16 islands).

    python -m benchmarks.simulation_cost [--islands 16] [--rounds 3]

In turn, in one process and on the same models: a round of the trainer (data, forward, backward, clip, AdamW, sync) and
the bare forward and backward of the same batches. The inner optimizer and clipping, which any loop
has, are timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import write_result
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig
from lowcomm.model import ModelConfig, token_losses
from lowcomm.run.assembly import Run, World, assemble, preflight
from lowcomm.trainer import Loop


def bare_round(run: Run, steps: int) -> float:
    """Seconds of forward and backward alone for `steps` steps of every island."""
    batches = [[shard.next_batch() for _ in range(steps)] for shard in run.shards]
    start = time.perf_counter()
    for step in range(steps):
        for island, own in zip(run.islands, batches, strict=True):
            token_losses(island.model, *own[step]).mean().backward()
            for p in island.params:
                p.grad = None
    return time.perf_counter() - start


def trainer_round(loop: Loop, steps: int) -> tuple[float, float]:
    """Seconds of one whole round, and of clipping and the inner optimizer in it."""
    inner_s = 0.0
    originals = [island.update for island in loop.run.islands]

    def timed(i: int, step: int) -> None:
        nonlocal inner_s
        before, start = loop.run.sync.state.sync_s, time.perf_counter()
        originals[i](step)  # the last island's step runs the sync, which is not the optimizer's cost
        inner_s += time.perf_counter() - start - (loop.run.sync.state.sync_s - before)

    for i, island in enumerate(loop.run.islands):
        island.update = lambda step, i=i: timed(i, step)
    start = time.perf_counter()
    for _ in range(steps):
        loop.step()
        loop.after_step()
    elapsed = time.perf_counter() - start
    for island, original in zip(loop.run.islands, originals, strict=True):
        island.update = original
    return elapsed, inner_s


def main() -> None:
    """Write benchmarks/results/simulation_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--islands", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=16, help="inner steps per round (H)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        config = RunConfig(
            islands=options.islands,
            transport="simulated",
            threads=1,
            tensorboard=False,
            run_dir=Path(directory) / "run",
            data=DataConfig(seq_len=128, batch_size=8),
            model=ModelConfig(preset="tiny"),
            sync=SyncConfig(every=options.every),
            checkpoint=CheckpointConfig(export=False),
        )
        config, data = preflight(replace(config, steps=10_000), World.from_environment())
        run = assemble(config, data, World.from_environment())
        loop = Loop(run)
        trainer_round(loop, options.every)
        samples = [(*trainer_round(loop, options.every), bare_round(run, options.every)) for _ in range(options.rounds)]
    beyond = statistics.median((total - inner) / bare - 1 for total, inner, bare in samples)
    with_inner = statistics.median(total / bare - 1 for total, _, bare in samples)
    row = {"preset": "tiny", "islands": options.islands, "H": options.every, "rounds": options.rounds}
    row |= {"beyond_forward_backward": with_inner, "beyond_forward_backward_and_inner_optimizer": beyond}
    row |= {"round_s": statistics.median(s[0] for s in samples), "bare_s": statistics.median(s[2] for s in samples)}
    row |= {"sync_s_per_round": run.sync.state.sync_s / run.sync.round}
    print(row)
    told = f"--islands {options.islands} --rounds {options.rounds} --every {options.every}"
    print(write_result("simulation_cost", f"python -m benchmarks.simulation_cost {told}", [row]))


if __name__ == "__main__":
    main()
