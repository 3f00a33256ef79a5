"""From what the islands have trained to what they hand to the codec: Delta, then privacy."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from lowcomm.flight import Flight

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


@torch.no_grad()
def depart(sync: LocalSGD, index: int) -> Flight:
    """The flight of a fragment's pseudo-gradients, ready for its exchange."""
    fragment, transport, guard = sync.fragments[index], sync.transport, sync.guard
    current = dataclasses.replace(sync.round_of(index), link_bytes_per_s=transport.link_bytes_per_s)
    computed = [fragment.compute_delta(r.tensors(fragment), i) for i, r in enumerate(sync.replicas)]
    deltas = [d for d, _ in computed]
    # what was held back is of the whole run
    whole = current.last and sync.codec.holds_back
    return Flight(
        fragment=index,
        round=current,
        deltas=deltas,
        told=guard.protect(fragment, deltas),
        norms=[guard.seen_norm(norm) for _, norm in computed],
        tokens=[r.tokens for r in sync.replicas],
        # of a protected island the others do not learn how much it trained, nor whether it did
        unsynced=[1.0 if guard.per_client else r.tokens if whole else r.unsynced(index) for r in sync.replicas],
        bytes_before=list(zip(transport.sent_bytes, transport.received_bytes, strict=True)),
    )
