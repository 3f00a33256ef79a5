"""What does not go with fresh inner optimizers in every round."""

from __future__ import annotations

from collections.abc import Iterator

from lowcomm.schedule import EveryH, Growing
from lowcomm.state.conflict import Conflict
from lowcomm.state.spec import SyncSpec


def fresh_conflicts(spec: SyncSpec) -> Iterator[Conflict]:
    """Pairs with `fresh_inner`."""
    if not spec.clients.fresh_inner:
        return
    if not isinstance(spec.schedule, EveryH | Growing):
        why = "a round does not end for the whole model at once"
        yield Conflict("sync.fresh_inner", True, f"sync.schedule = {type(spec.schedule).__name__}", why, "use EveryH")
    if spec.exchange is not None:
        why = "islands are not in one round"
        yield Conflict("sync.fresh_inner", True, f"sync.exchange = {type(spec.exchange).__name__}", why, "leave it out")
