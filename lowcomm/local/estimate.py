"""Gradients estimated without a backward pass: from losses along directions that every island can regenerate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.types import require

Loss = Callable[[int, float], float]
"""`loss(seed, scale)`: an island's loss on its batch at `w + scale * z(seed)`; scale 0 is the loss at w itself."""


@dataclass(frozen=True, kw_only=True)
class Estimate(ABC):
    """A frozen dataclass of settings. A step's scalars of one island are a row of bytes; rows make the update."""

    eps: float = 1e-3
    """How far a probe goes along its direction, in units of a weight (each entry of z has variance 1)."""
    probes: int = 1
    """Directions per island and step (k); each gives one scalar."""

    own_directions: ClassVar[bool]
    """Whether islands probe directions of their own, or all of them the same ones."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes that an island sends per step."""

    @abstractmethod
    def measure(self, loss: Loss, seeds: Sequence[int]) -> tuple[list[float], float]:
        """The projected gradient along the direction of each seed, and the loss to report (nats per token)."""

    @abstractmethod
    def write(self, scalars: Sequence[float]) -> Tensor:
        """The row that is sent: uint8 [row_bytes]."""

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """Rows, uint8 [islands, row_bytes], as scalars: fp64 [islands, probes]; NaN where an island is absent."""

    def absent(self) -> Tensor:
        """The row of an island that took no part in a step."""
        return self.write([math.nan] * self.probes)

    def seeds(self, seed: int, step: int, island: int) -> list[int]:
        """Seeds of the directions that an island probes in a step, from the run's seed, which all share."""
        who = island + 1 if self.own_directions else 0
        return [mix(seed, step, who, j) for j in range(self.probes)]

    def terms(self, rows: Tensor, seed: int, step: int) -> list[tuple[int, float]]:
        """The estimated gradient, `sum_i c_i z(seed_i)`, as pairs (seed_i, c_i): the same on whoever has the rows.

        Islands weigh alike; one with a scalar that is no finite number is absent. No term if all are.
        """
        scalars = self.read(rows)
        here = [k for k, row in enumerate(scalars) if bool(row.isfinite().all())]
        if not here:
            return []
        if not self.own_directions:
            means = scalars[here].sum(dim=0) / (len(here) * self.probes)
            return list(zip(self.seeds(seed, step, 0), means.tolist(), strict=True))
        share = 1 / (len(here) * self.probes)
        pairs = [(s, c) for k in here for s, c in zip(self.seeds(seed, step, k), scalars[k].tolist(), strict=True)]
        return [(s, c * share) for s, c in pairs]

    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""
        name = "inner.optimizer.estimate"
        ok = math.isfinite(self.eps) and self.eps > 0
        require(ok, f"{name}.eps", self.eps, "a finite number above 0", "1e-3 is usual")
        require(self.probes >= 1, f"{name}.probes", self.probes, "1 or more", "1 direction per step is the least")


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers: the finalizer of splitmix64 after each."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value >> 1


def fp32_row(scalars: Sequence[float]) -> Tensor:
    """Scalars as the bytes of fp32."""
    return torch.tensor(scalars, dtype=torch.float32).view(torch.uint8)
