"""The part of the table of conflicts for modes that never wait: what their rules need of the other parts."""

from __future__ import annotations

from collections.abc import Iterator

from lowcomm.arrival import ArrivalRule
from lowcomm.outer import DelayedNesterov, HeavyBall, HeLoCo, Nesterov
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec


def of_rule(spec: SyncSpec, rule: ArrivalRule, other: str) -> Iterator[Conflict]:
    """other: the exchange, as `FIELD = NAME`."""
    outer = spec.outer
    with_momentum = isinstance(outer, DelayedNesterov | HeavyBall | HeLoCo | Nesterov) and outer.momentum > 0
    if rule.turn is not None and not with_momentum:
        why = "stale Deltas are turned to the outer momentum, and it has none"
        yield Conflict("sync.outer", outer, f"{other}(rule.turn = {type(rule.turn).__name__})", why, "use HeLoCo()")
