"""What an exchange changes: the outer step, the replicas' weights, codec states, counters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lowcomm.round.exchange import Exchanged
from lowcomm.round.flight import Flight
from lowcomm.round.gradients import average_buffers
from lowcomm.round.lora_sync import hold, mixed, settle
from lowcomm.round.pacing import decide
from lowcomm.round.shrinking import adopt, told_ranks
from lowcomm.round.verify import verify_equal
from lowcomm.types import Round, SyncError

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What one sync did, for logs; lists have one entry per island, in island order."""

    round: Round
    seconds_s: float
    """Whole sync, or the exchange alone if training went on beside it."""
    blocked_s: float
    """Part of it in which the island could not train."""
    delta_norms: list[float]
    weights: list[float]
    dropped: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What codec and schedule decided in it."""
    began: float = 0.0
    """time.perf_counter() when the exchange began."""
    launched: float | None = None
    """time.perf_counter() when training stopped to start it; None: it waited until the exchange had landed."""
    launch_s: float = 0.0
    """Part of `blocked_s` that starting it took, from `launched` on; the rest ends with this report."""
    exchange_s: float = 0.0
    """The exchange alone, roll call included."""
    transfer_s: float = 0.0
    """The exchange after its roll call, in which islands wait for the last one."""
    exchanged_bytes: list[int] = field(default_factory=list)
    """Bytes that each local island sent in the exchange."""
    needed_bytes_per_s: float | None = None
    """Rate at which it would have been there just when it was due; None where it was not due beside training."""
    aggregation_error: float | None = None
    """How far what was aggregated is from what should be, relative; None: exact by construction, or not known."""
    ranks: list[int] = field(default_factory=list)
    """Rank of each island's LoRA factors from now on, where ranks shrink."""


def commit(sync: LocalSGD, flight: Flight, start: float, delayed: bool = False) -> None:
    """Outer step and new weights, if the exchange succeeded. Raises what it raised; then nothing has changed.

    start: since when training has waited (time.perf_counter). delayed: training went on since the flight started.
    """
    try:
        _commit(sync, flight, start, delayed)
    finally:
        sync.fragments[flight.fragment].release()


@torch.no_grad()
def _commit(sync: LocalSGD, flight: Flight, start: float, delayed: bool) -> None:
    index, fragment, transport = flight.fragment, sync.fragments[flight.fragment], sync.transport
    tensors = [r.tensors(fragment) for r in sync.replicas]
    alpha, share = sync.schedule.alpha, sync.schedule.own_share(transport.islands)
    try:
        done = sync.deadlines.receive(sync, flight, delayed)
        average_buffers(sync, done.roll.weights)
        changes = sync.corrections.exchange(sync, index, done.roll.weights)
    except SyncError:
        if delayed and share != 1:
            fragment.take_back(tensors, flight.deltas, share)  # or what was trained before the launch would be lost
            for replica in sync.replicas:
                replica.written(fragment)
        raise
    starts = fragment.starts(flight.deltas, share) if delayed and alpha is None else None
    fragment.set_outer_grad()
    sync.outers[index].step()
    trained = [r.tokens != t for r, t in zip(sync.replicas, flight.tokens, strict=True)]
    moved = [done.roll.weights[k] != 0 and more for k, more in zip(transport.local, trained, strict=True)]
    adopt(sync, done.roll)
    own = hold(sync, index, list(done.roll.dropped))
    digest = fragment.merge(tensors, starts, alpha, moved) if delayed else fragment.write(tensors)
    added = settle(sync, index, done.combined, own)
    sync.round += 1
    sync.guard.learn(flight.told, done.roll.dropped)
    sync.corrections.apply(index, changes)
    for i, (replica, island) in enumerate(zip(sync.replicas, transport.local, strict=True)):
        replica.synced_tokens[index] = flight.tokens[i]
        if flight.roll is not None and island in flight.roll.dropped:
            replica.inner.state.clear()  # moments of a diverged island are as bad as its weights
        residual, sync.codec_states[i][index] = sync.codec.take_residual(done.states[i])
        if residual is not None:
            share_kept = alpha if delayed and moved[i] and alpha is not None else 0.0
            fragment.keep_apart(tensors[i], residual, 1 - share_kept)
        replica.written(fragment)
    if delayed:
        sync.unverified[index] = (digest, flight.round)  # compared in the next exchange, so that no step waits for it
    else:
        digest = mixed(digest, added) if done.combined is not None and done.combined.residuals else digest
        verify_equal(transport, fragment, [digest] * len(sync.replicas), flight.round)
    if sync.schedule.adapts:
        sync.pace = decide(sync, flight)
    _report(sync, flight, done, flight.blocked_s + time.perf_counter() - start)


def _report(sync: LocalSGD, flight: Flight, done: Exchanged, blocked_s: float) -> None:
    elapsed = max(blocked_s, flight.exchange_s)
    sync.sync_s += elapsed
    sync.blocked_s += blocked_s
    report = SyncReport(
        round=flight.round,
        seconds_s=elapsed,
        blocked_s=blocked_s,
        delta_norms=done.roll.norms,
        weights=done.roll.weights,
        dropped=done.roll.dropped,
        notes=tuple(_notes(sync, flight, done)),
        began=flight.began,
        launched=flight.launched,
        launch_s=flight.blocked_s,
        exchange_s=flight.exchange_s,
        transfer_s=flight.transfer_s,
        exchanged_bytes=flight.sent_bytes,
        needed_bytes_per_s=flight.needed_bytes_per_s,
        aggregation_error=done.combined.error if done.combined is not None else None,
        ranks=sync.ranks,
    )
    for listener in sync.listeners:
        listener(report)


@torch.no_grad()
def pass_over(sync: LocalSGD, index: int) -> None:
    """A round for which nobody was sampled: nothing is exchanged or committed, and its number is used up."""
    current = sync.round_of(index)
    sync.round += 1
    for replica in sync.replicas:
        replica.mark_synced(index)
    nothing = [0.0] * sync.transport.islands
    note = f"round {current.index}: no island was sampled, nothing is committed"
    report = SyncReport(
        round=current,
        seconds_s=0.0,
        blocked_s=0.0,
        delta_norms=nothing,
        weights=nothing,
        notes=(note,),
        began=time.perf_counter(),
        exchanged_bytes=[0] * len(sync.replicas),
    )
    for listener in sync.listeners:
        listener(report)


def _notes(sync: LocalSGD, flight: Flight, done: Exchanged) -> Iterator[str]:
    if flight.expected is not None:
        yield f"round {flight.round.index}: sampled islands {sorted(flight.expected)} of {sync.transport.islands}"
    for told in done.combined.notes if done.combined is not None else ():
        yield f"round {flight.round.index}: {told}"
    if sync.ranks:
        yield f"round {flight.round.index}: {told_ranks(sync, done.payload_bytes)}"
    note = sync.codec.note(sync.codec_states[0][flight.fragment])
    if note is not None:
        yield f"round {flight.round.index}: {note}"
    if sync.schedule.adapts:
        pace = sync.pace
        yield (
            f"from round {sync.round} on: H {pace.every}, level {pace.level} "
            f"(step {1000 * (pace.step_s or 0):.3g} ms, exchange at level 0 {1000 * (pace.exchange_s or 0):.3g} ms)"
        )
