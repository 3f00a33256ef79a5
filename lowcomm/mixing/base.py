"""The mixing arrow of gossip: how an island's weights and its neighbours' become its next ones.

Vectors are flat, fp32, of one fragment, padded with zeros. What a neighbour said arrives as its difference from what
the island itself said: with a compressing codec that is what the public copies know of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from lowcomm.types import Delta


@dataclass(kw_only=True)
class Place:
    """Where a rule works: one fragment of one local island, at the end of a round."""

    island: int
    islands: int
    anchor: Tensor
    """a_k: the weights that the round began with; to be read only."""
    delta: Tensor
    """D_k: `anchor - local`; what the rule leaves here is what the outer optimizer gets."""
    gamma: float
    """Share of the way to the mixed weights."""
    views: Callable[[Tensor], Delta]
    """Names and shapes of a flat vector: views of it."""
    loss: Callable[[Tensor], float] | None = None
    """The island's loss at flat weights on held-out text of its own, nats per token; None: nobody to ask."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What the rule keeps from round to round, by name: zeros or nothing at first; saved in checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What came of a neighbour."""

    island: int
    weight: float
    """W_kj, less where it is an old one."""
    differences: tuple[Tensor, ...]
    """For each vector of a message: theirs minus this island's own."""


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A frozen dataclass of settings."""

    vectors: ClassVar[int] = 1
    """Vectors of one message, each a payload. More than one, and what `whole` says, need the codec Fp32."""
    whole: ClassVar[bool] = False
    """Whether it needs neighbours' vectors themselves: differences of compressed copies won't do."""
    early: ClassVar[bool] = False
    """Whether `say` reads the anchor only: messages can then cross while the round is trained."""
    repeats: ClassVar[bool] = False
    """Whether it can be done several times in a round."""
    remembers: ClassVar[bool] = False
    """Whether what a neighbour said some rounds ago can stand for what it says no more."""
    pulls: ClassVar[bool] = False
    """Whether it adds to the gradients of inner steps (`force`)."""
    judges: ClassVar[bool] = False
    """Whether it asks for losses on an island's own held-out text (`Place.loss`), so that only a run has it."""
    plain_outer: ClassVar[bool] = True
    """Whether it is itself the step on the weights, so that the outer optimizer must be SGD(lr=1.0)."""

    @abstractmethod
    def say(self, place: Place) -> tuple[Tensor, ...]:
        """The vectors of this round's message; not to be changed afterwards."""

    @abstractmethod
    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        """Turn `place.delta` into the update of the anchor. `heard` may be empty; its tensors may be changed."""

    def force(self, state: dict[str, Tensor]) -> tuple[float, float, Tensor] | None:
        """(rho, d, goal) of what it kept: `rho (d x - goal)` is added to the gradient at x; None: nothing yet."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""
