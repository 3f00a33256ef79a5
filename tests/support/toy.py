"""A small problem on which islands train: the same batches for the same (island, step), whoever computes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from lowcomm.codec import Codec, Fp32
from lowcomm.island import Inner
from lowcomm.outer import Nesterov, Outer
from lowcomm.schedule import EveryH, Schedule
from lowcomm.state.deadlines import LATE_TOLERANCE_S, OnLate
from lowcomm.state.digest import sha256_weights
from lowcomm.sync import LocalSGD
from lowcomm.transport import Transport

EVERY = 4
STEPS = 14
_SEEDING = threading.Lock()
"""Islands may be threads, and torch has one generator for all."""


class Net(nn.Module):
    """Odd sizes, a bias, a scalar and a tied weight: 7 -> 5 -> 5 -> 3."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with _SEEDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(7, 5)
            self.middle = nn.Linear(5, 5, bias=False)
            self.again = nn.Linear(5, 5, bias=False)
            self.again.weight = self.middle.weight
            self.last = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.again(torch.tanh(self.middle(x))))) * self.scale


def batch(island: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [4 + island, 7] and targets [4 + island, 3]: islands have unequal work."""
    generator = torch.Generator().manual_seed(10_007 * island + step)
    x = torch.randn(4 + island, 7, generator=generator)
    return x, torch.stack((x[:, 0] * x[:, 1], x[:, 2].sin(), x[:, 3].abs()), dim=1)


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def build(
    islands: int,
    *,
    outer: Outer | None = None,
    schedule: Schedule | None = None,
    codec: Codec | None = None,
    transport: Transport | None = None,
    every: int = EVERY,
    on_late: OnLate = "wait",
    late_tolerance_s: float = LATE_TOLERANCE_S,
    inner: Inner | None = None,
) -> LocalSGD:
    """LocalSGD over `islands` local models (1 under torch.distributed)."""
    models = [Net() for _ in range(islands)]
    return LocalSGD(
        models,
        [adamw(m) if inner is None else inner.build(m) for m in models],
        every=every,
        outer=outer or Nesterov(lr=0.7, momentum=0.6),
        schedule=schedule or EveryH(),
        codec=codec or Fp32(),
        transport=transport,
        on_late=on_late,
        late_tolerance_s=late_tolerance_s,
    )


def train_step(sync: LocalSGD, step: int) -> list[float]:
    """One inner step of every local island, counting its examples; returns their losses."""
    losses = []
    average = sync.next_action.average_gradients
    for i, (replica, island) in enumerate(zip(sync.replicas, sync.transport.local, strict=True)):
        x, y = batch(island, step)
        loss = (replica.model(x) - y).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        sync.count_tokens(len(x), i)
        if math.isfinite(losses[-1]):
            sync.count_loss(losses[-1], i)
        if not average:
            replica.inner.step()
            replica.inner.zero_grad()
    if average:
        sync.average_gradients()
        for replica in sync.replicas:
            replica.inner.step()
            replica.inner.zero_grad()
    return losses


def trajectory(sync: LocalSGD, steps: int = STEPS) -> list[str]:
    """SHA-256 of the global weights after every sync and at the end, with the bytes counted by island 0's process."""
    seen: list[str] = []
    sync.listeners.append(lambda report: seen.append(f"{report.round.index}:{sha256_weights(sync.weights())}"))
    for step in range(steps):
        train_step(sync, step)
    sync.finish()
    seen.append(f"end:{sha256_weights(sync.weights())}")
    seen.append(f"bytes:{sync.transport.sent_bytes[0]}:{sync.transport.received_bytes[0]}")
    return seen


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().reshape(-1).float() for t in tensors])
