"""The attack arrow: between local training and privacy, the Delta of some islands becomes what they send instead.

It stands in a run's configuration, is refused without `sync.allow_attack`, and is named in log, summary and report.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.types import Round, require


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What an attacker may use beside its own Delta."""

    round: Round
    """With the attacker's number as `island`."""
    honest: Tensor | None = None
    """[n, size]: finite Deltas of the islands that do not attack, for an attack that listens."""
    colluders: Tensor | None = None
    """[m, size]: finite Deltas that the attackers have trained, its own among them, for an attack that listens."""
    first: Tensor | None = None
    """The attacker's Delta of its first round, for an attack that keeps it; None in that round."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Frozen dataclasses, equal on every island."""

    islands: tuple[int, ...] = (0,)
    """Numbers of the islands that attack."""

    listens: ClassVar[bool] = False
    """Whether it knows the others' Deltas before it sends: they are gathered for it, in fp32, and counted apart."""
    keeps: ClassVar[bool] = False
    """Whether it keeps its first Delta."""
    poisons: ClassVar[bool] = False
    """Whether it changes what attackers train on, and no Delta."""
    hides: ClassVar[bool] = False
    """Whether an attacker says the norm of its honest Delta, not of what it sends."""

    @abstractmethod
    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        """What is sent instead of a Delta (flat, fp32): a new tensor, or `delta` itself."""

    def poison(self, targets: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
        """What an attacker trains on instead of a batch's targets (int64)."""
        return targets

    def plant(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets (int64, [batch, seq_len]) that attackers train on in place of a batch, before `poison`."""
        return inputs, targets

    def check(self) -> None:  # noqa: B027
        """Raise ConfigError for a setting out of range."""

    def check_islands(self, islands: int) -> None:
        """Raise ConfigError for attackers that there are not, or nobody else."""
        known = all(0 <= k < islands for k in self.islands)
        legal = f"numbers from 0 to {islands - 1}, each once, not all of them"
        ok = known and 0 < len(set(self.islands)) == len(self.islands) < islands
        require(ok, "sync.attack.islands", self.islands, legal, f"({islands - 1},) is the last one")

    @property
    def said(self) -> str:
        """The attack and its islands, for logs and summaries."""
        return f"{type(self).__name__} by islands {', '.join(map(str, self.islands))}"


def noise_like(delta: Tensor, norm: float, round: Round) -> Tensor:
    """Gaussian noise of a given L2 norm, drawn on the CPU from the attacker's own seed of the round."""
    generator = torch.Generator().manual_seed(round.own_seed(1 + sum(round.fragments)) % 2**63)
    noise = torch.randn(delta.shape, generator=generator)
    size = float(torch.linalg.vector_norm(noise.double()))
    return noise.mul_(norm / size if size > 0 else 0.0).to(delta.device)


def norm_of(delta: Tensor) -> float:
    """L2 norm, summed in fp64."""
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64))


def check_number(name: str, value: float, fix: str) -> None:
    """Raise ConfigError unless a factor is a finite number above 0."""
    require(0 < value < float("inf"), f"sync.attack.{name}", value, "a finite number above 0", fix)
