"""What is averaged over the islands as it is: gradients of data-parallel steps (DDP), and buffers named for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lowcomm.types import SyncError
from lowcomm.verify import check_still_covered

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


@torch.no_grad()
def average_gradients(sync: LocalSGD) -> None:
    """Replace every local island's gradients by their mean over all islands, fragment by fragment."""
    start = time.perf_counter()
    sync.wait()
    check_still_covered(sync.replicas)
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
    sync.must_rebase = True
    sync.gradient_steps += 1
    elapsed = time.perf_counter() - start
    sync.sync_s += elapsed
    sync.blocked_s += elapsed
    sync.gradients_s += elapsed


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
