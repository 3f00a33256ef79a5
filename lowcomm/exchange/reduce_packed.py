"""The all-reduce of packed vectors: fp32 is never sent, and every island ends with the same bits.

Vectors are cut at block bounds, one chunk per island. All-to-all of packed chunks; each island decodes and sums its
chunk in fp32 in island order with the islands' weights, encodes the sum once, and all-gathers it packed. Bytes per
island and way: 2 (n - 1) / n payloads for n islands. Under error feedback, what the second encoding loses is kept by
the island that did it, and added to its next sum.
Chunks travel in segments: while one is on its way the next is encoded, and sums are sent back segment by segment too.
Memory: two packed vectors (sent and received) beside the fragment's own scratch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.errors import NonFiniteError
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.error_feedback import SECOND
from lowcomm.exchange.base import Way
from lowcomm.exchange.roll_call import agree
from lowcomm.exchange.segments import Plan, Sender
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.types import PayloadError, UnusableError


@dataclass(frozen=True, kw_only=True)
class ReducePacked(Way):
    """Sums chunk by chunk on the way: no island sees another's contribution whole."""

    overwrites: ClassVar[bool] = True

    def carry(self, out: Outgoing, cohort: Cohort) -> Arrived:
        return _reduce(self, out, cohort)


def _reduce(way: Way, out: Outgoing, cohort: Cohort) -> Arrived:
    transport, plan = way.transport, Plan.of(way, out)
    islands, local = range(transport.islands), transport.local
    numbers = range(len(plan.cuts))
    senders = [Sender(way, out, cohort, plan, i) for i in range(len(local))]
    coming = []
    for j in numbers:
        sizes = [[plan.row_bytes(j, k)] * transport.islands for k in local]
        coming.append(transport.start_swap([sender.rows(j) for sender in senders], sizes))
    bad = [sender.bad for sender in senders]
    bodies = [_open_all(local, cohort, plan, j, coming[j](), bad) for j in numbers]
    cohort, _ = way.leave_out(out, cohort, bad)
    owners = [_Owner(way, out, cohort, plan, i) for i in range(len(local))]
    coming = []
    for j in numbers:
        packed = [owner.combine(j, bodies[j][i]) for i, owner in enumerate(owners)]
        sizes = [[plan.row_bytes(j, k) if k in transport.present else 0 for k in islands]] * len(local)
        coming.append(transport.start_swap([[row] * transport.islands for row in packed], sizes))
    bad = [dict[int, str]() for _ in local]
    for j in numbers:
        _read_all(out, plan, j, coming[j](), bad, transport.lost)
    if failed := agree(transport, bad):
        whose = "; ".join(f"chunk of island {k}: {why}" for k, why in failed.items())
        raise UnusableError(f"round {out.round.index}: a packed sum is unusable ({whose}). Nothing was committed.")
    arrived = way.arrived(out, cohort, [sender.state_after() for sender in senders])
    seconds = [owner.second for owner in owners]
    states = [{**s, SECOND: e} if e is not None else s for s, e in zip(arrived.states, seconds, strict=True)]
    return dataclasses.replace(arrived, states=states)


class _Owner:
    """Local island `local` as it sums its chunk, segment by segment."""

    def __init__(self, way: Way, out: Outgoing, cohort: Cohort, plan: Plan, local: int) -> None:
        self.plan, self.weights, self.mean = plan, cohort.weights, out.fragment.mean
        self.island = way.transport.local[local]
        self.own = way.round_of(out, local)
        self.seed = self.own.own_seed(use=1)
        self.start, stop = plan.chunks[self.island]
        self.old = out.states[local].get(SECOND)
        if self.old is not None and self.old.numel() != stop - self.start:
            self.old = None  # of the chunk that it had when more islands were there
        self.second: Tensor | None = None
        """What the second encoding lost, fp32 of the chunk's size (under error feedback)."""
        if plan.feedback is not None:
            self.second = torch.empty(stop - self.start, device=self.mean.device)

    def combine(self, j: int, bodies: dict[int, Tensor]) -> Tensor:
        """Segment j of the sum, packed; zeros (no header: every island sees it) if it overflows."""
        plan, (start, stop) = self.plan, self.plan.cuts[j][self.island]
        total = self.mean[start:stop]
        data, body = wire.new(plan.dense.body_bytes(stop - start), total.device)
        used = [k for k in bodies if self.weights[k] != 0]
        weights, parts = [self.weights[k] for k in used], [bodies[k] for k in used]
        if plan.dense.merge(parts, weights, total, body, plan.round.seed):
            self.second = None
            return plan.seal(data, self.own, j, self.island)
        plan.dense.sum_bodies(parts, weights, total)
        try:
            self._write(total, body, start)
        except NonFiniteError:
            return data.zero_()
        return plan.seal(data, self.own, j, self.island)

    def _write(self, total: Tensor, body: Tensor, start: int) -> None:
        dense, feedback = self.plan.dense, self.plan.feedback
        if feedback is None or self.second is None:
            dense.write(total, body, self.seed, start)
            return
        here = slice(max(start - self.start, 0), max(start - self.start, 0) + total.numel())
        old = torch.zeros_like(total) if self.old is None else self.old[here].to(total.device)
        dense.write_fed_back(total, old, self.second[here], feedback.beta, body, self.seed, start)


def _open_all(
    local: Sequence[int],
    cohort: Cohort,
    plan: Plan,
    j: int,
    received: Sequence[Sequence[Tensor]],
    bad: list[dict[int, str]],
) -> list[dict[int, Tensor]]:
    """For each local island the bodies of segment j of its chunk by sender; `bad` gets senders of unusable rows."""
    found = []
    for i, rows in enumerate(received):
        bodies: dict[int, Tensor] = {}
        for k, row in enumerate(rows):
            if cohort.weights[k] == 0 or k in bad[i]:
                continue
            try:
                bodies[k] = plan.open(row, j, local[i], sender=k)
            except PayloadError as error:
                bad[i][k] = str(error)
        found.append(bodies)
    return found


def _read_all(
    out: Outgoing,
    plan: Plan,
    j: int,
    received: Sequence[Sequence[Tensor]],
    bad: list[dict[int, str]],
    lost: Collection[int],
) -> None:
    """Decode segment j of all chunks into the mean; `bad` gets the owners of those that are unusable."""
    for i, rows in enumerate(received):
        if any(all(a is b for a, b in zip(rows, others, strict=True)) for others in received[:i]):
            continue  # islands in one process share what they get
        for k, row in enumerate(rows):
            start, stop = plan.cuts[j][k]
            if k in lost:
                continue
            try:
                plan.dense.read(plan.open(row, j, k, sender=k), out.fragment.mean[start:stop])
            except PayloadError as error:
                bad[i][k] = str(error)
