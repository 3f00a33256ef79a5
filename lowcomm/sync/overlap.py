"""Overlap: exchanges that start, go on beside training and are committed some inner steps later."""

from __future__ import annotations

import time

from lowcomm.state.outgoing import InFlight
from lowcomm.state.report import SyncReport
from lowcomm.state.state import SyncState
from lowcomm.sync.round import begin, commit, depart


def launch(state: SyncState, index: int) -> None:
    """Start to exchange a fragment beside training."""
    start = time.perf_counter()
    out = depart(state, index)
    out.delta_needed, out.overlapped, out.to_compare = True, True, state.consistency.take_later()
    flight = state.in_flight[index] = InFlight(out=out)
    if (share := state.spec.schedule.own_share(state.transport.islands)) != 1:
        for anchor in out.anchors:
            deltas = [out.deltas[i] for i in anchor.local]
            anchor.go_on_from(state.tensors(index, anchor.local), deltas, share)
            state.written(index, anchor.local)
    flight.pending = begin(state, out)
    flight.pending.launched, flight.pending.blocked_s = start, time.perf_counter() - start


def relaunch(state: SyncState) -> None:
    """Start again what was in flight when a checkpoint was saved.

    Islands of this process that stopped apart start it together, when the last one is there.
    """
    if any(r.steps != state.step for r in state.replicas):
        state.in_flight.clear()
    for flight in state.in_flight.values():
        flight.pending = begin(state, flight.out)


def commit_in_flight(state: SyncState, index: int) -> SyncReport | None:
    """Commit an exchange in flight, waiting for it if need be.

    On SyncError nothing has changed and the fragment is in `state.due`: the next step exchanges it anew.
    """
    start = time.perf_counter()
    flight = state.in_flight.pop(index)
    state.due = (*state.due, index)
    try:
        report = commit(state, flight.out, flight.pending, start, delayed=True)
    finally:
        flight.out.fragment.release()
    state.due = tuple(i for i in state.due if i != index)
    return report
