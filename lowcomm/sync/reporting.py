"""What a committed round says of itself, and the same as numbers for another trainer's log."""

from __future__ import annotations

import time
from collections.abc import Iterator

from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.state.report import SyncReport
from lowcomm.state.state import SyncState
from lowcomm.transport import Transport
from lowcomm.types import AlteredError, RetryError


def report_of(state: SyncState, out: Outgoing, pending: Pending, arrived: Arrived, blocked_s: float) -> SyncReport:
    """The report of a committed round, counted in the state's times."""
    elapsed = max(blocked_s, pending.exchange_s)
    state.sync_s += elapsed
    state.blocked_s += blocked_s
    cohort = arrived.cohort
    return SyncReport(
        round=out.round,
        seconds_s=elapsed,
        blocked_s=blocked_s,
        delta_norms=cohort.norms,
        weights=cohort.weights,
        dropped=cohort.dropped,
        notes=tuple(_notes(state, out, arrived)),
        began=pending.began,
        launched=pending.launched,
        launch_s=pending.blocked_s,
        exchange_s=pending.exchange_s,
        transfer_s=pending.transfer_s,
        exchanged_bytes=pending.sent_bytes,
        needed_bytes_per_s=pending.needed_bytes_per_s,
        aggregation_error=arrived.aggregate.error if arrived.aggregate is not None else None,
        scores=arrived.aggregate.scores if arrived.aggregate is not None else {},
        ranks=state.ranks,
        health=arrived.health,
    )


def report_skipped(state: SyncState, index: int) -> SyncReport:
    """The report of a round for which nobody was sampled."""
    current = state.round_of(index)
    nothing = [0.0] * state.transport.islands
    return SyncReport(
        round=current,
        seconds_s=0.0,
        blocked_s=0.0,
        delta_norms=nothing,
        weights=nothing,
        notes=(f"round {current.index}: no island was sampled, nothing is committed",),
        began=time.perf_counter(),
        exchanged_bytes=[0] * len(state.replicas),
    )


def _notes(state: SyncState, out: Outgoing, arrived: Arrived) -> Iterator[str]:
    number = f"round {out.round.index}"
    if out.expected is not None:
        yield f"{number}: sampled islands {sorted(out.expected)} of {state.transport.islands}"
    for line in (*arrived.notes, *(arrived.aggregate.notes if arrived.aggregate is not None else ())):
        yield f"{number}: {line}"
    for hook in state.hooks:
        if (line := hook.note(arrived)) is not None:
            yield f"{number}: {line}"
    if (line := state.spec.codec.note(state.codec_states[0][out.index])) is not None:
        yield f"{number}: {line}"
    if state.spec.schedule.adapts:
        pace = state.pace
        yield (
            f"from round {state.round} on: H {pace.every}, level {pace.level} "
            f"(step {1000 * (pace.step_s or 0):.3g} ms, exchange at level 0 {1000 * (pace.exchange_s or 0):.3g} ms)"
        )


def note_retry(state: SyncState, index: int, error: RetryError) -> None:
    """Remember what the next exchange of a fragment must know of one that failed."""
    if isinstance(error, AlteredError):
        state.altered[index] = {**state.altered.get(index, {}), **error.islands}


def log_line(transport: Transport, report: SyncReport) -> dict[str, float]:
    """Times in seconds; bytes of this rank since the run began, counted by its transport."""
    island = transport.local[0]
    return {
        "lowcomm/round": report.round.index,
        "lowcomm/sync_s": report.seconds_s,
        "lowcomm/blocked_s": report.blocked_s,
        "lowcomm/delta_norm": report.delta_norms[island],
        "lowcomm/islands_left_out": len(report.dropped),
        "lowcomm/bytes_sent": transport.sent_bytes[0],
        "lowcomm/bytes_received": transport.received_bytes[0],
    }
