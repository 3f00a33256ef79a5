"""A round from top to bottom: `depart -> begin -> commit`.

Training waits between the calls, or goes on (`overlap.py`): the same three calls either way. Before `commit` nothing
has changed but what left an island under a privacy mechanism; once the hooks' exchanges have succeeded, it can't fail.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time

import torch

from lowcomm.state.anchor import Anchor
from lowcomm.state.digest import mix
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.state.report import SyncReport
from lowcomm.state.state import SyncState
from lowcomm.sync.pacing import decide_pace
from lowcomm.sync.reporting import report_of, report_skipped
from lowcomm.sync.set_aside import contribution
from lowcomm.types import SyncError


@torch.no_grad()
def depart(state: SyncState, index: int) -> Outgoing:
    """Local weights -> Delta -> privacy and other hooks."""
    out = leave(state, index)
    for hook in state.hooks:
        hook.release(out)
    return out


def begin(state: SyncState, out: Outgoing) -> Pending:
    """Codec -> exchange -> decode -> aggregate. The result raises SyncError; then nothing has changed."""
    return state.exchange.start(out)


@torch.no_grad()
def commit(state: SyncState, out: Outgoing, pending: Pending, start: float, delayed: bool = False) -> SyncReport | None:
    """Outer step -> model. Raises what the exchange raised; None: it makes no new version yet.

    start: since when training has waited (time.perf_counter). delayed: training went on since the exchange started.
    """
    try:
        arrived = state.receive(out, pending, delayed)
        if arrived is None:
            return None
        with state.transport.transaction():
            changes = [hook.exchange(out, arrived) for hook in state.hooks]
    except SyncError:
        if delayed:
            state.take_back(out)
        raise
    for hook in state.hooks:
        hook.before_write(out, arrived)
    digest = b""
    for anchor, update in arrived.updates:
        digest = advance(state, anchor, update, out, arrived, delayed)
    for i in arrived.adopters or ():
        digest = state.write_back(out.index, [i])
    for hook, change in reversed(list(zip(state.hooks, changes, strict=True))):
        added = hook.after_write(out, arrived, change)
        digest = digest if added is None else mix(digest, added)
    state.accept(out, arrived, pending, delayed)
    if state.exchange.anchors == "shared":
        if delayed:
            state.consistency.postpone(out.index, digest, out.round)
        else:
            state.consistency.compare(out.anchors[0], digest, out.round)
    state.exchange.committed(out)
    if state.spec.schedule.adapts:
        state.pace = decide_pace(state, out, pending)
    return report_of(state, out, pending, arrived, pending.blocked_s + time.perf_counter() - start)


def leave(state: SyncState, index: int) -> Outgoing:
    """The pseudo-gradients of a fragment, as they are."""
    fragment, transport, spec = state.fragments[index], state.transport, state.spec
    now = dataclasses.replace(state.round_of(index), link_bytes_per_s=transport.link_bytes_per_s)
    expected = spec.expected(transport.islands, state.round)
    computed = _deltas(state, index, expected)
    whole = now.last and spec.codec.holds_back  # what was held back is of the whole run
    return Outgoing(
        fragment=fragment,
        index=index,
        round=now,
        anchors=state.anchors[index],
        versions=[anchor.version for anchor in state.anchors[index]],
        deltas=[d for d, _ in computed],
        norms=[
            math.nan if index in r.unusable else norm for r, (_, norm) in zip(state.replicas, computed, strict=True)
        ],
        tokens=[r.tokens for r in state.replicas],
        unsynced=[contribution(r, index, whole) for r in state.replicas],
        states=[s[index] for s in state.codec_states],
        rule_state=state.rule_states[index],
        losses=None if state.losses is None else functools.partial(state.losses, index),
        norms_before=state.norms[index],
        without=state.altered.pop(index, {}),
        expected=expected,
        bytes_before=list(zip(transport.sent_bytes, transport.received_bytes, strict=True)),
    )


def _deltas(state: SyncState, index: int, expected: frozenset[int] | None) -> list[tuple[torch.Tensor, float]]:
    """Deltas and their norms by local island.

    Islands on one model that sit the round out, whose Deltas nobody reads, have one vector for all, but where a hook
    writes into it.
    """
    fragment, spec = state.fragments[index], state.spec
    apart = expected is None or spec.noises_deltas or spec.clients.attack is not None
    found: list[tuple[torch.Tensor, float]] = []
    unread: int | None = None
    idle: tuple[torch.Tensor, float] | None = None
    for i, (island, replica) in enumerate(zip(state.transport.local, state.replicas, strict=True)):
        where = i
        if expected is not None and replica.shares_model and not apart and island not in expected:
            unread = where = i if unread is None else unread
            if replica.idle and idle is not None:
                found.append(idle)
                continue
        found.append(state.anchor_of(index, i).delta_of(replica.tensors(fragment), where))
        idle = found[-1] if replica.idle and where == unread else idle
    return found


def advance(
    state: SyncState, anchor: Anchor, update: torch.Tensor, out: Outgoing, arrived: Arrived, delayed: bool
) -> bytes:
    """Take an anchor's outer step and bring its replicas to the new weights; returns the digest of the anchor."""
    if not delayed:
        anchor.step(update)
        return state.write_back(out.index, anchor.local)
    tensors = state.tensors(out.index, anchor.local)
    alpha, starts = state.spec.schedule.alpha, None
    if alpha is None:
        share = state.spec.schedule.own_share(state.transport.islands)
        starts = anchor.starts([out.deltas[i] for i in anchor.local], share)
    anchor.step(update)
    return anchor.merge(tensors, starts, alpha, [state.moved(out, arrived, i) for i in anchor.local])


def nobody_sampled(state: SyncState) -> bool:
    """Whether no island contributes to the next round."""
    sampling = state.spec.clients.sampling
    return sampling is not None and state.spec.expected(state.transport.islands, state.round) == frozenset()


def skip(state: SyncState, index: int) -> SyncReport:
    """A round for which nobody was sampled: nothing is exchanged or committed, and its number is used up."""
    report = report_skipped(state, index)
    state.round += 1
    for replica in state.replicas:
        replica.mark_synced(index)
    return report


def unmerged(state: SyncState) -> tuple[int, ...]:
    """Fragments in which an island has trained since their last commit; all where something is held back or closed."""
    rows = [torch.tensor([r.unsynced(i) for i in range(len(state.fragments))]) for r in state.replicas]
    pooled = [state.transport.inside(row).sum(dim=0) for row in rows]
    if state.exchange.hears_all:  # an island may have had no work where others had
        pooled = [state.transport.gather(pooled).amax(dim=0)]
    trained = torch.stack(pooled).amax(dim=0).tolist()
    always = state.spec.codec.holds_back or state.exchange.unfinished(state.step)
    return tuple(i for i, tokens in enumerate(trained) if tokens > 0 or always)
