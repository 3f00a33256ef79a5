"""Gradients averaged over the islands: data-parallel steps (DDP), which some schedules ask for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

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
    for fragment in sync.fragments:
        flats = [fragment.flatten(r.grads(fragment), i) for i, r in enumerate(sync.replicas)]
        sync.transport.weighted_sum(flats, uniform, fragment.mean)
        for replica in sync.replicas:
            fragment.unflatten_mean(replica.grads(fragment))
    sync.must_rebase = True
    sync.gradient_steps += 1
    elapsed = time.perf_counter() - start
    sync.sync_s += elapsed
    sync.blocked_s += elapsed
    sync.gradients_s += elapsed
