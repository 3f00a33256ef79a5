"""The pace of the next round: what an adapting schedule is told, and how all islands decide alike."""

from __future__ import annotations

import torch

from lowcomm.schedule import Measured, Pace
from lowcomm.state.outgoing import Outgoing, Pending
from lowcomm.state.state import SyncState


def decide_pace(state: SyncState, out: Outgoing, pending: Pending) -> Pace:
    """The pace of the next round, from every island's measurements of the last one: 32 bytes per island.

    The slowest island sets the step; the island that came last to the exchange waited for no other, so that its time,
    the shortest, is the link's.
    """
    spec, transport = state.spec, state.transport
    step_s = state.step_clock.take_median_s() / len(state.replicas)  # islands of one process take turns
    sent = [now - before for now, (before, _) in zip(transport.sent_bytes, out.bytes_before, strict=True)]
    level_bytes = spec.codec.level_bytes(out.anchors[0].named) or [1]
    own = [torch.tensor([-step_s, pending.exchange_s, pending.latency_s, -float(b)], dtype=torch.float64) for b in sent]
    rows = [transport.inside(row).amin(dim=0) for row in own]  # of an island's ranks, as of the islands
    level_bytes = transport.inside(torch.tensor(level_bytes)).amax(dim=0).tolist()
    table = transport.gather(rows)
    table = table[[k for k in range(len(table)) if table[k].any()]]  # zeros stand for the lost
    measured = Measured(
        step=state.step,
        step_s=float(-table[:, 0].min()),
        exchange_s=float(table[:, 1].min()),
        latency_s=float(table[:, 2].min()),
        sent_bytes=int(-table[:, 3].min()),
    )
    return spec.schedule.next_pace(state.pace, spec.every, measured, level_bytes)
