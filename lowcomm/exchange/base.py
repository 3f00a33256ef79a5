"""The exchange: the way from islands' Deltas to updates of anchors.

An `ExchangeChoice` is a setting (a frozen dataclass; None in a spec: islands in lockstep, see `choose`); it builds the
`Exchange` that a sync uses all its life. A `Way` is what one exchange of islands in lockstep does with payloads.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from lowcomm.aggregate import Aggregate, Aggregator
from lowcomm.codec import Codec, State
from lowcomm.exchange.roll_call import agree
from lowcomm.exchange.worker import Worker
from lowcomm.state.anchor import Anchor
from lowcomm.state.cohort import Cohort
from lowcomm.state.consistency import Consistency
from lowcomm.state.deadlines import Deadlines
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.transport import Transport
from lowcomm.types import Part, Round


@dataclass(frozen=True, kw_only=True)
class ExchangeParts:
    """What an exchange is made of."""

    transport: Transport
    codec: Codec
    aggregator: Aggregator
    quorum: float
    every: int
    """Inner steps per round (H)."""
    round_seed: Callable[[int], int]
    """64-bit seed of a round, by its number."""
    anchors: list[list[Anchor]]
    """As in `SyncState.anchors`."""
    deadlines: Deadlines
    consistency: Consistency
    worker: Worker
    """Runs exchanges beside training."""
    seed: int = 0
    """The run's."""


class Exchange(ABC):
    """Starts exchanges, one fragment at a time."""

    anchors: ClassVar[Literal["shared", "own"]] = "shared"
    hears_all: ClassVar[bool] = True
    """As in `ExchangeChoice`, which this was built from."""
    judge: Callable[[int, int, Tensor], float] | None = None
    """A local island's (second) loss with a fragment (first) at flat weights, on text of its own; None: not a run."""
    leaving: Callable[[], bool] = staticmethod(lambda: False)
    """Whether this process is about to stop: then it is no time to go on without an island that stops as well."""
    stands_for_all: ClassVar[Literal["first", "mean"]] = "first"
    """The global weights of islands with anchors of their own: the first local anchor's, or the mean of all."""
    closes: ClassVar[bool] = False
    """Whether a run has a last exchange even where nothing has been trained since the one before."""

    def due(self, step: int, scheduled: tuple[int, ...]) -> tuple[int, ...]:
        """Fragments to exchange after inner step `step`. scheduled: those that the schedule asks for."""
        return scheduled

    def rests(self, island: int, step: int) -> bool:
        """Whether an island sits out the inner step after `step` of them."""
        return False

    def absent(self) -> frozenset[int]:
        """Islands whose own anchors do not count in the global weights, as all know."""
        return frozenset()

    def unfinished(self, step: int) -> bool:
        """Whether a run has a last exchange after so many inner steps even where nothing was trained since the last."""
        return self.closes

    def force(self, index: int, local: int) -> tuple[float, float, Tensor] | None:
        """(rho, d, goal): `rho (d x - goal)` is added to the gradients of a local island at x; None: nothing."""
        return None

    def committed(self, out: Outgoing) -> None:  # noqa: B027
        """What `start` started was committed: the anchors are those of the next round."""

    @abstractmethod
    def start(self, out: Outgoing) -> Pending:
        """Start to exchange. Its result raises SyncError, on every island that takes part alike; nothing has changed.

        Beside training where `out.overlapped`, else it is over when this returns.
        """

    def global_part(self) -> Part:
        """For the checkpoint: what is equal on every island."""
        return {}, {}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:  # noqa: B027
        """Put back what `global_part` gave, from the checkpoint's whole global part."""

    def island_part(self, local: int) -> Part:
        """For the checkpoint: what belongs to a local island."""
        return {}, {}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:  # noqa: B027
        """Put back what `island_part` gave, from the checkpoint's whole part of that island."""


@dataclass(frozen=True, kw_only=True)
class ExchangeChoice(ABC):
    """The setting of an exchange that is not the default."""

    anchors: ClassVar[Literal["shared", "own"]] = "shared"
    """Whether all islands share one anchor per fragment, or each has its own."""
    lockstep: ClassVar[bool] = False
    """Whether all islands exchange in the same round."""
    hears_all: ClassVar[bool] = False
    """Whether every island hears every other in each round, as hooks that exchange again need it."""
    whole_islands: ClassVar[bool] = False
    """Whether the first rank of an island speaks for all of its ranks."""

    @abstractmethod
    def build(self, parts: ExchangeParts) -> Exchange:
        """The exchange of a sync."""

    @abstractmethod
    def check(self, islands: int) -> None:
        """Raise ConfigError for a setting out of range, or one that does not fit the number of islands."""


@dataclass(frozen=True, kw_only=True)
class Way(ABC):
    """How payloads of a cohort become the update of the shared anchor."""

    transport: Transport
    codec: Codec
    aggregator: Aggregator
    quorum: float

    overwrites: ClassVar[bool] = False
    """Whether the mean may lie where the first local island's Delta does: all are encoded or added by then."""

    @abstractmethod
    def carry(self, out: Outgoing, cohort: Cohort) -> Arrived:
        """Fill `out.fragment.mean` with the aggregate of the cohort's Deltas; codec states as they are to be committed.

        Deltas of islands that are left out may be overwritten. Raises SyncError on every island alike, without a
        quorum of usable payloads for instance.
        """

    def heard_norm(self, norm: float) -> float:
        """What the others hear of a Delta's norm."""
        return norm

    def mean_limit(self, cohort: Cohort) -> float | None:
        """Largest L2 norm that the mean can have; None: not known, as codecs may add what they had kept back."""
        return None

    def round_of(self, out: Outgoing, local: int) -> Round:
        """The round as local island `local` encodes it."""
        return dataclasses.replace(out.round, island=self.transport.local[local])

    def takes_part(self, cohort: Cohort, local: int) -> bool:
        """Whether the contribution of local island `local` counts."""
        return cohort.weights[self.transport.local[local]] != 0

    def leave_out(self, out: Outgoing, cohort: Cohort, bad: Sequence[Mapping[int, str]]) -> tuple[Cohort, bool]:
        """Agree on unusable contributions (`bad`: by local island); the cohort without them, and whether there are any.

        Raises SyncError without a quorum.
        """
        agreed = {k: why for k, why in agree(self.transport, bad).items() if cohort.weights[k] != 0}
        if not agreed:
            return cohort, False
        return cohort.without(agreed, self.aggregator, out.round, self.quorum), True

    def arrived(
        self, out: Outgoing, cohort: Cohort, after: Sequence[State], aggregate: Aggregate | None = None
    ) -> Arrived:
        """New codec state where the contribution was used, else the old one: what was not sent must not count as sent.

        after: by local island, if all of it was used.
        """
        used = [cohort.weights[island] != 0 for island in self.transport.local]
        states = [new if ok else old for new, old, ok in zip(after, out.states, used, strict=True)]
        updates = [(out.anchors[0], out.fragment.mean)]
        return Arrived(cohort=cohort, updates=updates, states=states, aggregate=aggregate)
