"""The end of a loop: exchanges in flight arrive, and islands that train on are joined until all are done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowcomm.round.gradients import rebase
from lowcomm.round.joining import all_done, finishing_row, rest_until_exchange
from lowcomm.round.roll_call import gather_rows
from lowcomm.round.verify import verify_all

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


def end_together(sync: LocalSGD) -> None:
    """Return when every island is at the end of its loop, with nothing in flight. Raises SyncError, DivergenceError."""
    _arrive(sync)
    while not all_done(sync, gather_rows(sync.transport, [finishing_row(sync)] * len(sync.replicas))[0]):
        rest_until_exchange(sync)
        _arrive(sync)


def _arrive(sync: LocalSGD) -> None:
    sync.land(tuple(sync.flights))
    if sync.must_rebase:
        rebase(sync)
    verify_all(sync.transport, sync.fragments, sync.unverified)
    sync.unverified = {}
