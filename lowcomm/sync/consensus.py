"""The global weights of islands with anchors of their own: computed together, at evaluations and at the end only.

    mean = 1/n sum_k a_k;   distance = mean_k ||a_k - mean||^2

An fp32 sum of all islands: 2 (n - 1) / n times 4 bytes per parameter each way, n islands. Islands whose process is gone
are left out, by an agreement of those that are left (`exchange.agreement`), and those that the exchange calls absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowcomm.exchange.agreement import maximum
from lowcomm.state.report import Consensus
from lowcomm.state.state import SyncState
from lowcomm.transport.base import BLOCK, Transport, ordered_sum


def global_weights(state: SyncState) -> Sequence[Mapping[str, Tensor]]:
    """The global weights by fragment and name: fp32 views on the outer device.

    Every island calls it alike where each has anchors of its own. Raises SyncError.
    """
    if state.exchange.stands_for_all == "first":
        return [anchors[0].named for anchors in state.anchors]
    return consensus(state).named


@torch.no_grad()
def consensus(state: SyncState) -> Consensus:
    """The mean of the islands' anchors, kept until the next commit. Every island calls it alike; raises SyncError."""
    if state.consensus is None:
        state.worker.wait()
        transport = state.transport
        present, absent = _present(transport), state.exchange.absent()
        there = [k for k in present if k not in absent] or present
        locals_ = range(len(state.replicas))
        named: list[Mapping[str, Tensor]] = []
        squares = [0.0 for _ in locals_]
        for index, fragment in enumerate(state.fragments):
            own = [state.anchor_of(index, i).weights for i in locals_]
            mean = _mean(transport, own, there)
            named.append(fragment.views(mean))
            for i in locals_:
                squares[i] += float(torch.linalg.vector_norm(own[i] - mean, dtype=torch.float64)) ** 2
        table = transport.gather([torch.tensor([s], dtype=torch.float64) for s in squares])
        state.consensus = Consensus(named=named, distance=float(table[there].mean()))
    return state.consensus


@torch.no_grad()
def take_mean(state: SyncState) -> None:
    """Let all local models hold the mean of islands' own anchors, which stay apart. Every island calls it alike."""
    if state.exchange.stands_for_all == "first":
        return
    for index, named in enumerate(consensus(state).named):
        every = range(len(state.replicas))
        for tensors in state.tensors(index, every):
            for p, view in zip(tensors, named.values(), strict=True):
                p.copy_(view)
        state.written(index, every)


def _mean(transport: Transport, own: Sequence[Tensor], there: Sequence[int]) -> Tensor:
    mean = torch.empty_like(own[0])
    if len(there) == transport.islands:
        transport.weighted_sum(own, [1 / len(there)] * len(there), mean)
        return mean
    scratch = torch.empty(BLOCK)
    for start in range(0, mean.numel(), BLOCK):
        rows = transport.gather_present([v[start : start + BLOCK].cpu() for v in own])
        heard = [row for k, row in enumerate(rows) if k in there and row is not None]
        part = torch.empty_like(heard[0])
        ordered_sum(heard, [1 / len(heard)] * len(heard), part, scratch)
        mean[start : start + BLOCK].copy_(part)
    return mean


def _present(transport: Transport) -> list[int]:
    """The islands that are not gone, as all of them know: whoever dies is noticed by neighbours alone."""
    islands = range(transport.islands)
    transport.gather_present([torch.zeros(1, dtype=torch.uint8) for _ in transport.local])
    lost = torch.tensor([k in transport.lost for k in islands], dtype=torch.uint8)
    gone = maximum(transport, [lost] * len(transport.local))
    return [k for k in islands if not gone[k]]
