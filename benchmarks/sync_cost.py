"""What a sync costs beside a bare all-reduce of the same bytes and the same outer step (2 islands, loopback, gloo).

    python -m benchmarks.sync_cost [--preset 30m] [--repeats 15]

Both are timed in turn in the same processes; the ratio is taken pair by pair, the slower island counts. A third column
is the outer step alone.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.common import write_result
from lowcomm.outer import Nesterov
from lowcomm.sync import LocalSGD


def _model(preset: str) -> nn.Module:
    from lowcomm.model import ModelConfig, build_model

    config = ModelConfig(preset=preset)  # pyright: ignore[reportArgumentType]
    return build_model(config, vocab_size=260, max_tokens=128, seed=0, eos_id=256)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the slowest island, from a common start."""
    dist.barrier()
    start = time.perf_counter()
    work()
    elapsed = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
    return float(elapsed)


def worker(preset: str, repeats: int) -> None:
    """One island: interleave the sync and its baseline, print rank 0's row."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model = _model(preset)
    inner = torch.optim.SGD(model.parameters(), lr=1e-3)
    sync = LocalSGD(model, inner, every=1_000_000, outer=Nesterov())
    numel = sync.fragments[0].numel
    reduced = torch.randn(numel)
    twin = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    outer = Nesterov().build(twin)
    for p in twin:
        p.grad = torch.randn_like(p)
    rows: list[tuple[float, float, float]] = []
    for _ in range(repeats + 2):
        for p in model.parameters():
            p.data.add_(torch.randn_like(p), alpha=1e-4)
        sync.replicas[0].tokens += 1
        ours = _timed(lambda: sync.sync((0,)))
        bare = _timed(lambda: dist.all_reduce(reduced))
        step = _timed(outer.step)
        rows.append((ours, bare, step))
    if dist.get_rank() == 0:
        kept = rows[2:]  # the first ones allocate
        ratio = statistics.median(o / (b + s) for o, b, s in kept)
        ours, bare, step = (statistics.median(r[i] for r in kept) for i in range(3))
        row = {"preset": preset, "parameters": numel, "islands": dist.get_world_size(), "repeats": repeats}
        row |= {"sync_s": ours, "all_reduce_s": bare, "outer_step_s": step, "ratio": ratio}
        row |= {"ratio_min": min(o / (b + s) for o, b, s in kept), "ratio_max": max(o / (b + s) for o, b, s in kept)}
        print(row)
        print(write_result("sync_cost", f"python -m benchmarks.sync_cost --preset {preset} --repeats {repeats}", [row]))
    dist.destroy_process_group()


def main() -> None:
    """Start two processes under torchrun on the loopback address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="30m")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help="used by the launcher")
    options = parser.parse_args()
    if options.worker:
        worker(options.preset, options.repeats)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = ["benchmarks.sync_cost", "--worker", "--preset", options.preset, "--repeats", str(options.repeats)]
    subprocess.run([*command, *arguments], check=True)


if __name__ == "__main__":
    main()
