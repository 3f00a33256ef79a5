"""What benchmarks/fed_overhead.py lets every package do: linear regression on ten samples, one SGD step per client."""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

SAMPLES, WIDTH, RATE = 10, 10, 0.1
WARMUP = 2
"""Rounds that are not timed."""


def model() -> nn.Linear:
    """Eleven parameters, the same for everybody."""
    torch.manual_seed(0)
    return nn.Linear(WIDTH, 1)


def features(client: int) -> Tensor:
    """fp32 [10, 10], the client's own."""
    return torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(client))


def targets(client: int) -> Tensor:
    """fp32 [10, 1]."""
    return features(client).sum(dim=1, keepdim=True) + client / 100


def rounds_and_clients() -> tuple[int, int, int]:
    """Rounds, clients, and how many of them train in a round, from the command line; one thread for torch."""
    torch.set_num_threads(1)
    return int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def tell(ends_s: list[float], weights: Tensor) -> None:
    """Print the seconds between the ends of rounds, and the weights after the last, on which all packages agree."""
    seconds = [b - a for a, b in itertools.pairwise(ends_s)][WARMUP:]
    told = {"round_s": seconds, "weights": weights.flatten().tolist(), "peak_bytes": peak_bytes()}
    print("RESULT " + json.dumps(told), flush=True)


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(rounds: int, one_round: Callable[[], object]) -> list[float]:
    """Ends of rounds, the start first."""
    ends_s = [time.perf_counter()]
    for _ in range(rounds + WARMUP):
        one_round()
        ends_s.append(time.perf_counter())
    return ends_s
