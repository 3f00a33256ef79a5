"""Dense packed vectors that every island gets and sums: two islands, and robust links of more.

Each segment goes to all others while the next is encoded; every island sums what came in island order, so that it
rounds once. Bytes per island: (n - 1) payloads each way for n islands.
Memory: n packed vectors beside the fragment's own scratch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowcomm.codec.dense import Dense
from lowcomm.round.compressed import Crossing, Exchanged
from lowcomm.round.roll_call import RollCall
from lowcomm.round.segments import Plan, Sender
from lowcomm.types import PayloadError

Bodies = dict[int, Tensor]


def share_packed(crossing: Crossing, dense: Dense, deltas: Sequence[Tensor]) -> Exchanged:
    """Fill the fragment's mean. Raises SyncError without a quorum of usable payloads."""
    transport = crossing.transport
    plan = Plan.of(crossing, dense, [(0, crossing.fragment.numel)])
    senders = [Sender(crossing, plan, i, flat) for i, flat in enumerate(deltas)]
    coming = []
    for j in range(len(plan.cuts)):
        sizes = [plan.row_bytes(j, 0) if weight != 0 else 0 for weight in crossing.roll.weights]
        rows = [sender.rows(j)[0][: sizes[sender.island]] for sender in senders]  # silent: known to all, nothing
        coming.append(transport.start_swap([[row] * transport.islands for row in rows], [sizes] * len(rows)))
    found: dict[int, str] = {}
    bodies: list[Bodies] = []
    for j, arrival in enumerate(coming):
        bodies.append(_open(crossing, plan, j, arrival()[0], found))
        _sum(crossing, plan, j, bodies[j], crossing.roll)
    roll, changed = crossing.strike([{**found, **sender.bad} for sender in senders])
    if changed:
        for j, ready in enumerate(bodies):
            _sum(crossing, plan, j, ready, roll)
    return crossing.commit([sender.state_after() for sender in senders], roll)


def _open(crossing: Crossing, plan: Plan, j: int, rows: Sequence[Tensor], bad: dict[int, str]) -> Bodies:
    """Bodies of segment j by sender; `bad` gets senders of unusable rows."""
    bodies: Bodies = {}
    for k, row in enumerate(rows):
        if crossing.roll.weights[k] == 0 or k in bad:
            continue
        try:
            bodies[k] = plan.open(row, crossing, j, 0, sender=k)
        except PayloadError as error:
            bad[k] = str(error)
    return bodies


def _sum(crossing: Crossing, plan: Plan, j: int, bodies: Bodies, roll: RollCall) -> None:
    """Segment j of the mean."""
    start, stop = plan.cuts[j][0]
    used = [k for k in bodies if roll.weights[k] != 0]
    weights, parts = [roll.weights[k] for k in used], [bodies[k] for k in used]
    plan.dense.sum_bodies(parts, weights, crossing.fragment.mean[start:stop])
