"""What does not go with averaged moments (DES-LOC): part of the table in `compatibility.py`."""

from __future__ import annotations

from collections.abc import Iterator

from lowcomm.aggregate.lora.rule import LoraRule
from lowcomm.aggregate.robust import RobustRule
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec

OTHER = "sync.moments"


def moment_conflicts(spec: SyncSpec) -> Iterator[Conflict]:
    """Parts of a spec."""
    clients, rule, leave = spec.clients, spec.aggregator, "leave one of them out"
    if clients.moments is None:
        return
    clients.moments.check()
    if clients.fresh_inner:
        yield Conflict("sync.fresh_inner", True, OTHER, "moments that begin anew are not worth an average", leave)
    if spec.exchange is not None:
        why = "an average of moments is a second exchange of all islands in a round"
        yield Conflict("sync.exchange", type(spec.exchange).__name__, OTHER, why, leave)
    if spec.schedule.overlaps:
        why = "training would wait for the moments of an exchange beside it"
        yield Conflict("sync.schedule", type(spec.schedule).__name__, OTHER, why, "use EveryH or Growing")
    if spec.privacy is not None or clients.secure is not None:
        why = "moments would leave the island without noise or masks"
        yield Conflict("sync.privacy or sync.secure", None, OTHER, why, leave)
    if isinstance(rule, RobustRule):
        yield Conflict(
            "sync.aggregator", type(rule).__name__, OTHER, "moments are a plain mean over all islands", leave
        )
    if isinstance(rule, LoraRule):
        yield Conflict("sync.aggregator", type(rule).__name__, OTHER, "it makes new factors, with other moments", leave)


def with_ranks(spec: SyncSpec, ranks: int) -> Iterator[Conflict]:
    """Islands of several ranks."""
    if spec.clients.moments is not None and ranks > 1:
        why = "each rank holds parts of the moments"
        yield Conflict("island.size", ranks, OTHER, why, "islands of one rank")
