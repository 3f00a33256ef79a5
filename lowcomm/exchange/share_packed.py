"""The sharing of packed vectors: every island gets all and sums them (two islands, and robust links of more).

Each segment goes to all others while the next is encoded; every island sums what came in island order, so that it
rounds once. Bytes per island: (n - 1) payloads each way for n islands.
Memory: n packed vectors beside the fragment's own scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.exchange.base import Way
from lowcomm.exchange.segments import Plan, Sender
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.types import PayloadError

Bodies = dict[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class SharePacked(Way):
    """Sends each packed vector to all, segment by segment; rounds once."""

    overwrites: ClassVar[bool] = True

    def carry(self, out: Outgoing, cohort: Cohort) -> Arrived:
        return _share(self, out, cohort)


def _share(way: Way, out: Outgoing, cohort: Cohort) -> Arrived:
    transport, mean = way.transport, out.fragment.mean
    plan = Plan.of(way, out, [(0, out.fragment.numel)])
    senders = [Sender(way, out, cohort, plan, i) for i in range(len(transport.local))]
    coming = []
    for j in range(len(plan.cuts)):
        sizes = [plan.row_bytes(j, 0) if weight != 0 else 0 for weight in cohort.weights]
        rows = [sender.rows(j)[0][: sizes[sender.island]] for sender in senders]  # silent: known to all, nothing
        coming.append(transport.start_swap([[row] * transport.islands for row in rows], [sizes] * len(rows)))
    found: dict[int, str] = {}
    bodies: list[Bodies] = []
    for j, arrival in enumerate(coming):
        bodies.append(_open(cohort, plan, j, arrival()[0], found))
        _sum(cohort, plan, j, bodies[j], mean)
    cohort, changed = way.leave_out(out, cohort, [{**found, **sender.bad} for sender in senders])
    if changed:
        for j, ready in enumerate(bodies):
            _sum(cohort, plan, j, ready, mean)
    return way.arrived(out, cohort, [sender.state_after() for sender in senders])


def _open(cohort: Cohort, plan: Plan, j: int, rows: Sequence[Tensor], bad: dict[int, str]) -> Bodies:
    """Bodies of segment j by sender; `bad` gets senders of unusable rows."""
    bodies: Bodies = {}
    for k, row in enumerate(rows):
        if cohort.weights[k] == 0 or k in bad:
            continue
        try:
            bodies[k] = plan.open(row, j, 0, sender=k)
        except PayloadError as error:
            bad[k] = str(error)
    return bodies


def _sum(cohort: Cohort, plan: Plan, j: int, bodies: Bodies, mean: Tensor) -> None:
    """Segment j of the mean."""
    start, stop = plan.cuts[j][0]
    used = [k for k in bodies if cohort.weights[k] != 0]
    weights, parts = [cohort.weights[k] for k in used], [bodies[k] for k in used]
    plan.dense.sum_bodies(parts, weights, mean[start:stop])
