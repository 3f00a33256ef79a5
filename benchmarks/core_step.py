"""Seconds of an inner step under a LocalSGD that has nothing to do in it, beside a plain loop's, as JSON.

    PYTHONPATH=TREE:TREE/kernels python -P benchmarks/core_step.py TREE [--turns 40]

Run by benchmarks/core.py on any commit's tree; it uses nothing but LocalSGD as a user's loop does. Two equal models of
four layers of width 256 (0.26M parameters, a step of about a millisecond: small, so that a hook would be seen) take
25 steps in turn, the order changing every time. The same loop twice without a LocalSGD gives the noise. One thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import nn

import lowcomm as lc

STEPS = 25


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of equal weights each time."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def seconds(model: nn.Module, inner: torch.optim.Optimizer, x: torch.Tensor) -> float:
    """Of a step, over `STEPS` of them."""
    start = time.perf_counter()
    for _ in range(STEPS):
        model(x).square().mean().backward()
        inner.step()
        inner.zero_grad()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    """One line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree")
    parser.add_argument("--turns", type=int, default=40)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    loops = {name: build() for name in ("plain", "again", "synced")}
    sync = lc.LocalSGD(*loops["synced"], every=10**9)
    x = torch.randn(64, 256)
    seen: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(turns + 2):
        for name in list(loops)[:: 1 if turn % 2 else -1]:
            seen[name].append(seconds(*loops[name], x))
    assert sync.step == (turns + 2) * STEPS
    per_turn = [{name: times[turn] for name, times in seen.items()} for turn in range(2, turns + 2)]
    row = {f"{name}_step_s": statistics.median(t[name] for t in per_turn) for name in loops}
    row["synced_over_plain"] = statistics.median(t["synced"] / t["plain"] for t in per_turn)
    row["again_over_plain"] = statistics.median(t["again"] / t["plain"] for t in per_turn)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
