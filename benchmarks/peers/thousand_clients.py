"""Simulated clients that train language models in lowcomm's trainer: MODEL ROUNDS CLIENTS SAMPLED.

nano: in turn, a round of the trainer (data, forward, backward, clip, AdamW, exchange, log) and the bare forward and
backward of as many batches on the same model; the ratio is what a simulation costs beyond its clients' own work.
smollm2: SmolLM2-135M-Instruct with adapters of rank 8; what counts is the memory that the process has had resident.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.peers.trivial_work import peak_bytes
from lowcomm.aggregate.lora import FedIT
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Packages
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import LoRA, ModelConfig, token_losses
from lowcomm.outer import SGD
from lowcomm.run.assembly import Run, World, assemble, preflight
from lowcomm.sampling import FixedSize
from lowcomm.smollm2 import SmolLM2, SmolLM2Tokens
from lowcomm.trainer import Loop

STEPS = {"nano": 8, "smollm2": 2}
"""Inner steps of a client per round."""


def config_of(kind: str, clients: int, sampled: int, directory: Path) -> RunConfig:
    """A run of so many clients, of which `sampled` train in a round with fresh moments."""
    sync = SyncConfig(every=STEPS[kind], outer=SGD(lr=1.0), sampling=FixedSize(count=sampled), fresh_inner=True)
    base = RunConfig(
        islands=clients,
        steps=10_000,
        transport="simulated",
        turns="on",
        device="cpu",
        threads=1,
        tensorboard=False,
        run_dir=directory / "run",
        sync=sync,
        checkpoint=CheckpointConfig(export=False),
    )
    if kind == "nano":
        data = DataConfig(seq_len=128, batch_size=8, validation_sequences=8)
        return replace(base, data=data, model=ModelConfig(preset="nano"))
    text = Packages(names=("numpy", "rich", "torch", "transformers"), max_bytes_each=400_000)
    return replace(
        base,
        data=DataConfig(source=text, tokenizer=SmolLM2Tokens(), seq_len=64, batch_size=1, validation_sequences=8),
        model=ModelConfig(origin=SmolLM2(), tuning=LoRA(rank=8, alpha=16.0)),
        inner=InnerConfig(optimizer=AdamW(lr=3e-4, weight_decay=0.0)),
        sync=replace(sync, aggregator=FedIT(rank=8, alpha=16.0)),
    )


def trainer_round(loop: Loop, steps: int) -> float:
    """Seconds of one whole round."""
    start = time.perf_counter()
    for _ in range(steps):
        loop.step()
        loop.after_step()
    return time.perf_counter() - start


def bare_round(run: Run, steps: int, sampled: int) -> float:
    """Seconds of forward and backward alone of so many clients."""
    island = run.islands[0]
    batches = [shard.next_batch() for shard in run.shards[:sampled] for _ in range(steps)]
    start = time.perf_counter()
    for inputs, targets in batches:
        token_losses(island.model, inputs, targets).mean().backward()
        for p in island.params:
            p.grad = None
    return time.perf_counter() - start


def main() -> None:
    """Print one line of JSON."""
    kind, (rounds, clients, sampled) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        config, data = preflight(config_of(kind, clients, sampled, Path(directory)), World.from_environment())
        run = assemble(config, data, World.from_environment())
        start_s = time.perf_counter() - start
        loop, steps = Loop(run), STEPS[kind]
        warm = kind == "nano"
        if warm:
            trainer_round(loop, steps)
        whole_s: list[float] = []
        bare_s: list[float] = []
        for _ in range(rounds):
            whole_s.append(trainer_round(loop, steps))
            bare_s.append(bare_round(run, steps, sampled))
        trainable = run.islands[0].parameter_counts()[1]
        idle = sum(replica.idle for replica in run.sync.replicas)
    told = {"round_s": whole_s, "bare_s": bare_s, "start_s": start_s, "peak_bytes": peak_bytes()}
    print("RESULT " + json.dumps({**told, "steps": steps, "trainable": trainable, "idle": idle}), flush=True)


if __name__ == "__main__":
    main()
