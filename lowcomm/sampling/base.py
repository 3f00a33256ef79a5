"""The clients of a round, drawn from the run's seed and the round: all islands agree without talking."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Sampling(ABC):
    """Frozen dataclasses. An island that is not sampled neither trains nor contributes; it takes the new weights."""

    independent: ClassVar[bool]
    """Whether each island is drawn by itself (Poisson): what amplification of privacy by sampling rests on."""

    @property
    def chance(self) -> float:
        """Probability of an island to be in a round, if they are drawn independently; 1 elsewhere: nothing claimed."""
        return 1.0

    @abstractmethod
    def draw(self, islands: int, seed: int, round_index: int) -> frozenset[int]:
        """The islands of a round; maybe none."""

    def senders(self, islands: int) -> int:
        """Islands that add noise to a round's sum: all, unless only those sampled send."""
        return islands

    @abstractmethod
    def check(self, islands: int) -> None:
        """Raise ConfigError for a setting out of range."""


def tickets(islands: int, seed: int, round_index: int) -> list[int]:
    """64 independent bits for each island: a hash of (seed, round, island), the same in every version of anything."""
    texts = (f"lowcomm sampling {seed} {round_index} {island}".encode() for island in range(islands))
    return [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in texts]
