"""The privacy arrow: Delta -> Delta, before the codec."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.types import Delta, require

State = dict[str, float]
"""What a mechanism has learnt so far; equal on every island, part of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What an island draws its noise with, in one release."""

    seed: int
    """128 bits that nobody else knows and that no other release has."""
    shares: int
    """Islands that are sure to add noise: each adds its share of what the sum needs."""


@dataclass(frozen=True, kw_only=True)
class Mechanism(ABC):
    """Base of the mechanisms: Gaussian noise on what was clipped, (epsilon, delta) by the accountant."""

    noise_multiplier: float = 1.0
    """z: standard deviation of the whole noise, in units of `sensitivity`; 0: clipping alone, no guarantee."""
    delta: float = 1e-5
    """Delta of (epsilon, delta), 0 < delta < 1: well below 1 over the number of those who are protected."""
    budget: float | None = None
    """Epsilon at which the run ends, before the round that would exceed it; None: only reported."""
    seed: int | None = None
    """None: the noise comes from the system's randomness. A number makes it the same in each run, for tests: whoever
    knows it can take the noise off again."""

    level: ClassVar[Literal["client", "example"]]
    """Whom the guarantee is about: a whole island, or one sequence of its text."""

    learns: ClassVar[bool] = False
    """Whether its state changes with what islands tell."""

    @property
    def by_chance(self) -> bool:
        """Whether an island's sequences are in a step's batch by independent chance."""
        return False

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """Largest L2 norm of what one of them adds to a sum, at the start."""

    @abstractmethod
    def init(self) -> State:
        """The state before the first release."""

    @abstractmethod
    def clip_and_noise(self, delta: Delta, draw: Draw, state: State) -> float | None:
        """Clip and noise fp32 tensors in place; returns what all islands are to add up for `learn`, or None."""

    def learn(self, state: State, told: Mapping[int, float]) -> State:
        """The next state, from what each island that was counted has told."""
        return state

    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""
        z, budget = self.noise_multiplier, self.budget
        ok = math.isfinite(z) and z >= 0
        require(ok, "sync.privacy.noise_multiplier", z, "a finite number, 0 or more", "1.0 is usual")
        require(0 < self.delta < 1, "sync.privacy.delta", self.delta, "0 < delta < 1", "1e-5")
        ok = budget is None or (math.isfinite(budget) and budget > 0)
        require(ok, "sync.privacy.budget", budget, "a finite epsilon above 0, or None for off", "8.0")
        hides = budget is None or z > 0
        fix = "give sync.privacy.noise_multiplier, or leave the budget out"
        require(hides, "sync.privacy.budget", budget, "None without noise, whose epsilon is infinite", fix)
        seed = self.seed
        require(seed is None or seed >= 0, "sync.privacy.seed", seed, "0 or more, or None", "leave it out")
