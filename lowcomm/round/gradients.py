"""What is averaged over the islands as it is: gradients of data-parallel steps (DDP), and buffers named for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lowcomm.island.scalars import ScalarOptimizer
from lowcomm.round.verify import check_still_covered, verify_equal
from lowcomm.types import SyncError

if TYPE_CHECKING:
    from lowcomm.round.fragment import Fragment
    from lowcomm.round.replica import Replica
    from lowcomm.sync import LocalSGD


@torch.no_grad()
def average_gradients(sync: LocalSGD) -> None:
    """Replace every local island's gradients by their mean over all islands, fragment by fragment.

    Islands whose steps are made of scalars (`island/scalars.py`) hear each other's instead.
    """
    start = time.perf_counter()
    sync.wait()
    check_still_covered(sync.replicas)
    if not _share_scalars(sync):
        _average_tensors(sync)
    sync.must_rebase = True
    sync.gradient_steps += 1
    elapsed = time.perf_counter() - start
    sync.sync_s += elapsed
    sync.blocked_s += elapsed
    sync.gradients_s += elapsed


def _share_scalars(sync: LocalSGD) -> bool:
    """Gather the rows of scalar optimizers; False where islands have gradients."""
    inners = [r.inner for r in sync.replicas if isinstance(r.inner, ScalarOptimizer)]
    if not inners:
        return False
    rows = [inner.row for inner in inners if inner.row is not None]
    if len(rows) != len(inners):
        raise SyncError("an island has no scalars for this step: let it probe its loss before the exchange")
    table = sync.transport.gather(rows)
    for inner in inners:
        inner.hear(table)
    return True


@torch.no_grad()
def hold_once(first: Replica, fragments: Sequence[Fragment]) -> None:
    """Let the first island's weights be the global weights where every step leaves all islands with equal ones.

    Scalar optimizers have nothing to average, so that memory stays that of inference: no second copy. Weights of
    another dtype or device than the global ones have a copy, as ever.
    """
    if isinstance(first.inner, ScalarOptimizer):
        for fragment in fragments:
            for p, view in zip(first.tensors(fragment), fragment.outer_params, strict=True):
                if p.dtype == view.dtype and p.device == view.device:
                    p.data = view


def _average_tensors(sync: LocalSGD) -> None:
    uniform = [1 / sync.transport.islands] * sync.transport.islands
    for index, fragment in enumerate(sync.fragments):
        if index in sync.flights:
            raise SyncError("gradients were to be averaged while an exchange is on its way. Fix: land it first")
        flats = [fragment.flatten(r.grads(fragment), i) for i, r in enumerate(sync.replicas)]
        fragment.overwrite_delta()
        try:
            sync.transport.weighted_sum(flats, uniform, fragment.mean)
            for replica in sync.replicas:
                fragment.unflatten_mean(replica.grads(fragment))
        finally:
            fragment.release()
        for replica in sync.replicas:
            replica.part.gradients_written([name for name in fragment.covers if name in replica.params])


@torch.no_grad()
def average_buffers(sync: LocalSGD, weights: Sequence[float]) -> None:
    """Average the buffers that were named for it, with the islands' weights; of several ranks' copies their mean."""
    buffers, transport = sync.buffers, sync.transport
    if buffers is None:
        return
    sync.wait()
    flats = [buffers.flatten(r.tensors(buffers), i) for i, r in enumerate(sync.replicas)]
    if transport.ranks > 1:
        flats = [transport.inside(flat.cpu()).mean(dim=0).to(flat.device) for flat in flats]
    try:
        transport.weighted_sum(flats, weights, buffers.mean)
        for replica in sync.replicas:
            buffers.unflatten_mean(replica.tensors(buffers))
    finally:
        buffers.release()


@torch.no_grad()
def read_back(sync: LocalSGD) -> None:
    """Bring the global weights up to date in a phase of averaged gradients, in which islands are equal: no exchange.

    For evaluation, checkpoints and reports in its middle; the comparison with the other islands comes with `rebase`.
    """
    if sync.must_rebase:
        for fragment in sync.fragments:
            fragment.read(sync.replicas[0].tensors(fragment))


@torch.no_grad()
def rebase(sync: LocalSGD) -> None:
    """After steps with averaged gradients the islands are equal: their weights are the global weights."""
    average_buffers(sync, [1 / sync.transport.islands] * sync.transport.islands)
    for index, fragment in enumerate(sync.fragments):
        current = sync.round_of(index)
        digests = [fragment.read(r.tensors(fragment)) for r in sync.replicas]
        verify_equal(sync.transport, fragment, digests, current)
        for replica in sync.replicas:
            replica.mark_synced(index)
    sync.must_rebase = False  # only now: one that failed is due again
