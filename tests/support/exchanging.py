"""One exchange of vectors outside a sync."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowcomm.aggregate import Aggregator
from lowcomm.codec import Codec, State
from lowcomm.exchange.choose import way_of
from lowcomm.state.anchor import Anchor
from lowcomm.state.cohort import Cohort
from lowcomm.state.fragment import Fragment
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.transport import Transport
from lowcomm.types import Round


def carry(
    fragment: Fragment,
    deltas: list[Tensor],
    transport: Transport,
    codec: Codec,
    aggregator: Aggregator,
    states: Sequence[State],
    cohort: Cohort,
    round: Round,
) -> Arrived:
    """Fill `fragment.mean` with the aggregate of all islands' deltas."""
    anchor = Anchor(fragment, 0, tuple(range(len(transport.local))))
    out = Outgoing.of(anchor, deltas, list(states), round)
    return way_of(transport, codec, aggregator).carry(out, cohort)
