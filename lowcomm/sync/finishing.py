"""The end of a loop: exchanges in flight arrive, and islands that train on are joined until all are done."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lowcomm.exchange.joining import all_done, finishing_row
from lowcomm.exchange.roll_call import gather_rows
from lowcomm.state.state import SyncState
from lowcomm.sync.data_parallel import close_averaging, rebase

HORIZON = 1 << 16
"""Inner steps ahead in which the next exchange is looked for."""


def finish_all(state: SyncState, commit: Callable[[], None], rest: Callable[[int], None]) -> None:
    """Return when every island is at the end of its loop, with nothing in flight. Raises SyncError, DivergenceError.

    commit: commits all that is in flight. rest: lets a local island sit an inner step out.
    """
    for replica in state.replicas:
        replica.check_counted()
    close_averaging(state)
    _arrive(state, commit)
    if not state.exchange.hears_all:
        return
    while not all_done(*gather_rows(state.transport, [_row(state)] * len(state.replicas))):
        before = state.round
        while state.round == before and not state.in_flight:  # up to and with the next exchange of the schedule
            for island in range(len(state.replicas)):
                rest(island)
        _arrive(state, commit)


def _arrive(state: SyncState, commit: Callable[[], None]) -> None:
    commit()
    if state.must_rebase:
        rebase(state)
    state.consistency.compare_all(state.anchors, state.consistency.take_later())


def _row(state: SyncState) -> torch.Tensor:
    votes = 0 if state.deadlines.vote is None else 1
    numbers = votes + sum(hook.numbers for hook in state.hooks)
    return finishing_row(state.step, state.round, _steps_to_next_exchange(state), numbers)


def _steps_to_next_exchange(state: SyncState) -> int | None:
    """Inner steps up to the next exchange; None: there is none, or gradients are averaged before it."""
    if state.due:
        return 1
    for ahead in range(1, HORIZON):
        action = state.action_at(state.step + ahead)
        if action.average_gradients:
            return None
        if action.sync:
            return ahead
    return None
