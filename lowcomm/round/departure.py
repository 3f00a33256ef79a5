"""From what the islands have trained to what they hand to the codec: Delta, then privacy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowcomm.clients import expected, sampled
from lowcomm.round.flight import Flight
from lowcomm.round.shrinking import decide

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


@torch.no_grad()
def depart(sync: LocalSGD, index: int) -> Flight:
    """The flight of a fragment's pseudo-gradients, ready for its exchange."""
    fragment, transport, guard = sync.fragments[index], sync.transport, sync.guard
    current = dataclasses.replace(sync.round_of(index), link_bytes_per_s=transport.link_bytes_per_s)
    computed = [fragment.compute_delta(r.tensors(fragment), i) for i, r in enumerate(sync.replicas)]
    deltas = [d for d, _ in computed]
    told = _protect(sync, index, deltas)
    # what was held back is of the whole run
    whole = current.last and sync.codec.holds_back
    return Flight(
        fragment=index,
        round=current,
        deltas=deltas,
        told=told,
        norms=[_seen_norm(sync, norm) for _, norm in computed],
        tokens=[r.tokens for r in sync.replicas],
        # of a protected island the others do not learn how much it trained, nor whether it did
        unsynced=[1.0 if guard.per_client else r.tokens if whole else r.unsynced(index) for r in sync.replicas],
        expected=expected(sync),
        ranks=decide(sync, index),
        bytes_before=list(zip(transport.sent_bytes, transport.received_bytes, strict=True)),
    )


def _protect(sync: LocalSGD, index: int, deltas: Sequence[Tensor]) -> list[float]:
    """Clip and noise where Deltas are private; under Poisson sampling with the weights 1 / (q n) that it asks for."""
    guard, fragment, sampling = sync.guard, sync.fragments[index], sync.clients.sampling
    drawn = sampled(sync)
    if not guard.per_client or sampling is None or drawn is None:
        return guard.protect(fragment, deltas, None, sync.round)
    alike = sampling.independent
    for island, flat in zip(sync.transport.local, deltas, strict=True):
        if alike and island not in drawn:
            flat.zero_()  # it did not train; in bf16 its weights are not the global ones exactly
    told = guard.protect(fragment, deltas, drawn, sync.round)
    if alike:
        for flat in deltas:
            flat.mul_(1 / sampling.chance)
    return told


def _seen_norm(sync: LocalSGD, norm: float) -> float:
    """What the others are told of a Delta's norm: with masks or noise only whether it is finite."""
    if sync.clients.secure is not None and math.isfinite(norm):
        return 0.0
    return sync.guard.seen_norm(norm)
