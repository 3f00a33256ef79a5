"""What a sync costs beside a bare all-reduce of the same bytes and the same outer step (2 islands, loopback, gloo).

    python -m benchmarks.sync_cost [--preset 30m] [--repeats 15]

All are timed in turn in the same processes; ratios are taken turn by turn, the slower island counts. `ratio` is
against all_reduce plus the outer step as one writes it, torch.optim.SGD with Nesterov momentum; `ratio_fused` against
all_reduce plus the fused step that lowcomm itself takes, so that only what a sync adds is left. Several launches, since
the threads of a group keep the cores that they were first given.
"""

from __future__ import annotations

import argparse
import json
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
    """One island: interleave the sync and its baselines; rank 0 prints the seconds of every turn as JSON."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model = _model(preset)
    inner = torch.optim.SGD(model.parameters(), lr=1e-3)
    sync = LocalSGD(model, inner, every=1_000_000, outer=Nesterov())
    reduced = torch.randn(sync.state.fragments[0].numel)
    twin = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    steps = (torch.optim.SGD(twin, lr=0.7, momentum=0.9, nesterov=True), Nesterov().build(twin))
    for p in twin:
        p.grad = torch.randn_like(p)
    rows: list[list[float]] = []
    for _ in range(repeats + 2):
        for p in model.parameters():
            p.data.add_(torch.randn_like(p), alpha=1e-4)
        sync.replicas[0].tokens += 1
        ours = _timed(lambda: sync.sync((0,)))
        bare = _timed(lambda: dist.all_reduce(reduced))
        rows.append([ours, bare, *(_timed(step.step) for step in steps)])
    if dist.get_rank() == 0:
        print(json.dumps(rows[2:]), flush=True)  # the first ones allocate
    dist.destroy_process_group()


def summarise(preset: str, launches: list[list[list[float]]]) -> dict[str, object]:
    """Medians over all turns of all launches, and the spread of the launches' own medians."""
    turns = [turn for launch in launches for turn in launch]
    names = ("sync_s", "all_reduce_s", "outer_step_s", "outer_step_fused_s")
    row: dict[str, object] = {"preset": preset, "islands": 2, "launches": len(launches), "turns": len(turns)}
    row |= {n: statistics.median(t[i] for t in turns) for i, n in enumerate(names)}
    for name, step in (("ratio", 2), ("ratio_fused", 3)):
        per_launch = [statistics.median(t[0] / (t[1] + t[step]) for t in launch) for launch in launches]
        row[name] = statistics.median(t[0] / (t[1] + t[step]) for t in turns)
        row |= {f"{name}_min_launch": min(per_launch), f"{name}_max_launch": max(per_launch)}
    return row


def main() -> None:
    """Start two processes under torchrun on the loopback address, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="30m")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help="used by the launcher")
    options = parser.parse_args()
    if options.worker:
        worker(options.preset, options.repeats)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = ["benchmarks.sync_cost", "--worker", "--preset", options.preset, "--repeats", str(options.repeats)]
    launches = []
    for _ in range(options.launches):
        done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
        launches.append(json.loads(done.stdout.strip().splitlines()[-1]))
    row = summarise(options.preset, launches)
    print(row)
    told = f"--preset {options.preset} --repeats {options.repeats} --launches {options.launches}"
    print(write_result("sync_cost", f"python -m benchmarks.sync_cost {told}", [row]))


if __name__ == "__main__":
    main()
