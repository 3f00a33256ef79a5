"""The part of the table of conflicts for islands that contribute to an ordered log."""

from __future__ import annotations

from collections.abc import Iterator

from lowcomm.codec import Rqm
from lowcomm.codec.dense import Dense
from lowcomm.exchange.buffered import Buffered
from lowcomm.schedule import EveryH
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec
from lowcomm.sync.arrival_conflicts import of_rule


def of_buffered(spec: SyncSpec) -> Iterator[Conflict]:
    """What needs rounds that all islands are in, where each contributes at its own pace."""
    other, bare = "sync.exchange = Buffered", spec.codec.bare
    if not isinstance(spec.schedule, EveryH):
        why = "each island has its own pace"
        yield Conflict("sync.schedule", type(spec.schedule).__name__, other, why, "use EveryH")
    if spec.clients.local_steps is not None:
        why = "an island contributes after sync.every steps of its own"
        fix = "sync.exchange.speeds for islands of unequal speed"
        yield Conflict("sync.local_steps", spec.clients.local_steps, other, why, fix)
    if isinstance(spec.exchange, Buffered) and spec.exchange.rule is not None:
        yield from of_rule(spec, spec.exchange.rule, other)
    if isinstance(bare, Rqm):
        yield Conflict("sync.codec", "Rqm", other, "its noise is that of one sum of all islands", "use Int4")
    if isinstance(bare, Dense) and bare.only_sums:
        why = "it is a vote of all islands in one round"
        yield Conflict("sync.codec", type(bare).__name__, other, why, "use Sign(vote=False), or exchange='gather'")
