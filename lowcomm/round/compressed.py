"""What both compressed exchanges work on, and what they give back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lowcomm.aggregate.base import Aggregator, Combined
from lowcomm.codec.base import Codec, State
from lowcomm.round.fragment import Fragment
from lowcomm.round.roll_call import RollCall, agree
from lowcomm.transport.base import Transport
from lowcomm.types import Delta, Round


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """What an exchange gives back, to be committed together with its mean."""

    states: list[State]
    """Codec state of each local island; that of an island whose contribution was not used is the old one."""
    roll: RollCall
    payload_bytes: list[int] = field(default_factory=list)
    """Size of each island's payload, where all have got all of them."""
    combined: Combined | None = None
    """What the aggregator made of it beside the mean; None: contributions were summed on the way."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """One fragment on its way between the islands in one round."""

    fragment: Fragment
    transport: Transport
    codec: Codec
    aggregator: Aggregator
    states: list[State]
    roll: RollCall
    round: Round
    quorum: float

    @property
    def mean(self) -> Delta:
        """Views of the fragment's mean, which is filled."""
        return self.fragment.views(self.fragment.mean)

    def round_of(self, local: int) -> Round:
        """The round as local island `local` encodes it."""
        return dataclasses.replace(self.round, island=self.transport.local[local])

    def takes_part(self, local: int) -> bool:
        """Whether the contribution of local island `local` counts."""
        return self.roll.weights[self.transport.local[local]] != 0

    def strike(self, bad: Sequence[Mapping[int, str]]) -> tuple[RollCall, bool]:
        """Agree on unusable contributions (`bad`: by local island); the roll without them, and whether there are any.

        Raises SyncError without a quorum.
        """
        agreed = {k: why for k, why in agree(self.transport, bad).items() if self.roll.weights[k] != 0}
        if not agreed:
            return self.roll, False
        return self.roll.without(agreed, self.aggregator, self.round, self.quorum), True

    def commit(self, after: list[State], roll: RollCall, combined: Combined | None = None) -> Exchanged:
        """New state where the contribution was used, else the old one: what was not sent must not count as sent."""
        used = [roll.weights[island] != 0 for island in self.transport.local]
        states = [new if ok else old for new, old, ok in zip(after, self.states, used, strict=True)]
        return Exchanged(states=states, roll=roll, combined=combined)
