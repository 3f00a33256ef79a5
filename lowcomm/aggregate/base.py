"""The aggregate arrow: contributions of the islands -> one Delta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lowcomm.types import Contribution, Delta, Round

State = dict[str, Tensor]
"""What an aggregator carries from round to round: tensors by name, equal on every island, checkpointed."""


def one_rank(table: Tensor) -> Tensor:
    """The sum over the ranks of an island that has one."""
    return table


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a rule may look at beside the contributions."""

    start: Delta
    """The anchor that the Deltas were taken from."""
    round: Round
    state: State = field(default_factory=dict)
    """What the rule kept of its last committed round; empty in the first."""
    losses: Callable[[Sequence[Delta]], list[float]] | None = None
    """Nats per token on the proxy set of the anchor minus each of some Deltas; None: there is no proxy set."""
    sum_ranks: Callable[[Tensor], Tensor] = one_rank
    """Sums a small CPU table over the ranks of the island, each of which holds a shard of every Delta."""


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What an aggregator makes of a round, to be committed together."""

    delta: Delta
    residuals: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By module: factors ([out, R], [R, in]) whose product every island adds to that module's frozen base weight."""
    error: float | None = None
    """How far the result is from what should have been aggregated, relative; None: exact, or not known."""
    notes: tuple[str, ...] = ()
    """Lines for the log of the round."""
    state: State = field(default_factory=dict)
    """What the rule carries to the next round."""
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """What it thinks of islands, by name of the score and island: for the run's score book."""


class Aggregator(ABC):
    """Frozen dataclasses; `needs` lets the configuration refuse transports and codecs that do not fit."""

    needs: ClassVar[Literal["sum", "each"]]
    """"sum": a weighted sum made on the way will do; "each": it must see every contribution (robust rules)."""

    @property
    def bounded(self) -> bool:
        """Whether all islands weigh the same, whatever they trained on: client-level privacy rests on it."""
        return False

    @property
    def proxies(self) -> bool:
        """Whether it judges by losses of a proxy set."""
        return False

    @property
    def fewest(self) -> int:
        """Contributions that a round must have, or it commits nothing."""
        return 1

    @property
    def withstands(self) -> int:
        """Islands among `fewest` whose Deltas may be of any size without harm; 0: it does not look after such ones."""
        return 0

    @abstractmethod
    def weights(self, tokens: Sequence[float]) -> list[float]:
        """The weight of each island, in island order, summing to 1; `tokens` is 0 for one that is left out."""

    @abstractmethod
    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        """The aggregate of contributions in island order; their weights sum to 1."""

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        """The aggregate for rules that look at more than the contributions, keep state or change frozen weights."""
        return Aggregate(delta=self(contributions))

    def trains(self, name: str, round_index: int) -> bool:
        """Whether this parameter is trained in this round; the others rest on every island."""
        return True

    def check(self) -> None:  # noqa: B027  # nothing to check is a good default
        """Raise ConfigError for a setting out of range."""

    def check_islands(self, islands: int) -> None:  # noqa: B027
        """Raise ConfigError for settings that do not fit this number of islands."""
