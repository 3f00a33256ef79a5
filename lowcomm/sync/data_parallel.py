"""Data-parallel steps: gradients that are averaged over the islands as they are (DDP).

An island whose loop is over while the others average on sends NaN as its first element (`close_averaging`): whoever
finds one in the mean asks all islands where they are. So nobody waits in another collective than the others, and all
raise the same SyncError, or know that all are done. Cost: one more exchange of gradients at the end of such a loop.
With scalar optimizers the row of such an island is DONE bytes, which stand for NaN in each of their formats.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from lowcomm.exchange.joining import all_done, finishing_row
from lowcomm.exchange.roll_call import gather_rows
from lowcomm.island.scalars import ScalarOptimizer
from lowcomm.state.anchor import Anchor
from lowcomm.state.coverage import check_still_covered
from lowcomm.state.replica import Replica
from lowcomm.state.state import SyncState
from lowcomm.types import SyncError

DONE = 0xFF
"""Each byte of the row of an island that is done; of fp32 and of fp8 this is a NaN, thus an absent island."""


@torch.no_grad()
def average_gradients(state: SyncState) -> None:
    """Replace every local island's gradients by their mean over all islands, fragment by fragment.

    Islands whose steps are made of scalars (`island/scalars.py`) hear each other's instead.
    """
    if state.exchange.anchors == "own":
        raise SyncError("gradients of islands with weights of their own are not averaged. Fix: leave the exchange out")
    start = time.perf_counter()
    state.worker.wait()
    check_still_covered(state.replicas)
    if not _share_scalars(state):
        _average_tensors(state)
    state.must_rebase = True
    state.gradient_steps += 1
    elapsed = time.perf_counter() - start
    state.sync_s += elapsed
    state.blocked_s += elapsed
    state.gradients_s += elapsed


def _share_scalars(state: SyncState) -> bool:
    """Gather the rows of scalar optimizers; False where islands have gradients."""
    inners = [r.inner for r in state.replicas if isinstance(r.inner, ScalarOptimizer)]
    if not inners:
        return False
    rows = [inner.row for inner in inners if inner.row is not None]
    if len(rows) != len(inners):
        raise SyncError("an island has no scalars for this step: let it probe its loss before the exchange")
    table = state.transport.gather(rows)
    if bool((table == DONE).all(dim=1).any()):  # or a loss that is NaN: then nobody is done, and the step goes on
        all_done(*gather_rows(state.transport, [_training_row(state)] * len(state.replicas)))
    for inner in inners:
        inner.hear(table)
    return True


def _average_tensors(state: SyncState) -> None:
    uniform = state.transport.uniform
    for index, fragment in enumerate(state.fragments):
        if index in state.in_flight:
            raise SyncError("gradients were to be averaged while an exchange is in flight. Fix: commit it first")
        flats = [fragment.flatten(r.grads(fragment), i) for i, r in enumerate(state.replicas)]
        fragment.overwrite_delta()
        try:
            state.transport.weighted_sum(flats, uniform, fragment.mean)
            if index == 0 and bool(fragment.mean[0].isnan()):
                all_done(*gather_rows(state.transport, [_training_row(state)] * len(state.replicas)))
            for replica in state.replicas:
                fragment.unflatten(fragment.mean, replica.grads(fragment))
        finally:
            fragment.release()
        for replica in state.replicas:
            replica.part.gradients_written([name for name in fragment.covers if name in replica.params])


def _training_row(state: SyncState) -> torch.Tensor:
    """Row of an island that is in an averaged step; as long as one that is done sends."""
    row = finishing_row(0, 0, None, 0)
    row[0] = float(state.round)
    return row


@torch.no_grad()
def close_averaging(state: SyncState) -> None:
    """Meet the others, who may be in an averaged step, at the end of this island's loop, before it says anything else.

    Raises SyncError, on every island alike, if one of them trains on: an averaged step needs all.
    """
    if not state.action_at(state.step + 1).average_gradients:
        return
    state.worker.wait()
    scalar = [r.inner for r in state.replicas if isinstance(r.inner, ScalarOptimizer)]
    if scalar:
        state.transport.gather([torch.full((inner.row_bytes,), DONE, dtype=torch.uint8) for inner in scalar])
    else:
        _sum_of_nan(state)
    row = finishing_row(state.step, state.round, None, 0)
    all_done(*gather_rows(state.transport, [row] * len(state.replicas)))


def _sum_of_nan(state: SyncState) -> None:
    """Take part in the others' next averaged step with gradients that say that this island is done."""
    fragment = state.fragments[0]
    flats = [fragment.delta(i).zero_() for i in range(len(state.replicas))]
    for flat in flats:
        flat[:1] = torch.nan
    fragment.overwrite_delta()
    try:
        state.transport.weighted_sum(flats, state.transport.uniform, fragment.mean)
    finally:
        fragment.release()


@torch.no_grad()
def rebase(state: SyncState) -> None:
    """Let the islands' weights be the anchors: after steps with averaged gradients they are equal."""
    if state.buffer_average is not None:
        state.buffer_average.write(state.buffer_average.means(state.transport.uniform))
    for index, (anchor,) in enumerate(state.anchors):
        digests = [anchor.read(tensors) for tensors in state.tensors(index, anchor.local)]
        state.consistency.compare_each(anchor, digests, state.round_of(index))
        for replica in state.replicas:
            replica.mark_synced(index)
    state.must_rebase = False  # only now: one that failed is due again


@torch.no_grad()
def share_storage(first: Replica, anchors: Sequence[Sequence[Anchor]]) -> None:
    """Let the first island's weights be the anchors where every step leaves all islands with equal ones.

    Scalar optimizers have nothing to average, so that memory stays that of inference: no second copy. Weights of
    another dtype or device than the anchors have a copy, as ever.
    """
    if isinstance(first.inner, ScalarOptimizer):
        for shared in anchors:
            for p, view in zip(first.tensors(shared[0].fragment), shared[0].params, strict=True):
                if p.dtype == view.dtype and p.device == view.device:
                    p.data = view
