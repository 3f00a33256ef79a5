"""An all-reduce of packed vectors: fp32 is never sent, and every island ends with the same bits.

Vectors are cut at block bounds, one chunk per island. All-to-all of packed chunks; each island decodes and sums its
chunk in fp32 in island order with the islands' weights, encodes the sum once, and all-gathers it packed. Bytes per
island and way: 2 (n - 1) / n payloads for n islands. Under error feedback, what the second encoding loses is kept by
the island that did it, and added to its next sum.
Chunks travel in segments: while one is on its way the next is encoded, and sums are sent back segment by segment too.
Memory: two packed vectors (sent and received) beside the fragment's own scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lowcomm_kernels.errors import NonFiniteError
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import State
from lowcomm.codec.dense import Dense
from lowcomm.codec.error_feedback import SECOND, ErrorFeedback
from lowcomm.codec.flat import non_finite
from lowcomm.compressed import Crossing, Exchanged
from lowcomm.roll_call import RollCall, agree
from lowcomm.types import Payload, PayloadError, SyncError

SEGMENT = 1 << 20
"""Elements of a chunk that are encoded and sent at a time; equal on all islands."""

Bounds = tuple[int, int]


def cut(numel: int, islands: int, granule: int) -> list[Bounds]:
    """(start, stop) of each island's chunk: equal multiples of `granule`, the last ones shorter or empty."""
    per_island = -(-numel // islands)
    step = -(-per_island // granule) * granule
    # an empty chunk is (0, 0), since encoders want to start at a multiple of the granule
    return [(k * step, min((k + 1) * step, numel)) if k * step < numel else (0, 0) for k in range(islands)]


def segments(chunks: Sequence[Bounds], granule: int) -> list[list[Bounds]]:
    """Segment by segment the (start, stop) of each island's part: multiples of `granule`, (0, 0) where none is left."""
    step = -(-SEGMENT // granule) * granule
    longest = max(stop - start for start, stop in chunks)
    return [
        [(start + at, min(start + at + step, stop)) if start + at < stop else (0, 0) for start, stop in chunks]
        for at in range(0, max(longest, 1), step)
    ]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a fragment is cut and marked on the wire: `cuts[j][k]` is segment j of island k's chunk."""

    dense: Dense
    feedback: ErrorFeedback | None
    chunks: list[Bounds]
    cuts: list[list[Bounds]]
    shapes: int

    def row_bytes(self, j: int, k: int) -> int:
        start, stop = self.cuts[j][k]
        return wire.HEADER_BYTES + self.dense.body_bytes(stop - start)

    def part(self, j: int, k: int) -> wire.Part:
        return wire.Part(index=j * len(self.chunks) + k, count=len(self.cuts) * len(self.chunks))

    def seal(self, data: Tensor, crossing: Crossing, j: int, k: int) -> Tensor:
        return wire.seal(data, self.dense.codec_id, self.shapes, crossing.round, self.part(j, k)).data

    def open(self, row: Tensor, crossing: Crossing, j: int, k: int) -> Tensor:
        """The body of a row that holds segment j of chunk k, examined. Raises PayloadError."""
        start, stop = self.cuts[j][k]
        size = self.dense.body_bytes(stop - start)
        payload = Payload(data=row)
        body = wire.open_body(
            payload, self.dense.codec_id, self.shapes, crossing.round, body_bytes=size, part=self.part(j, k)
        )
        self.dense.examine(body, stop - start)
        return body


def sum_packed(crossing: Crossing, dense: Dense, deltas: Sequence[Tensor]) -> Exchanged:
    """Fill the fragment's mean. Raises SyncError on every island if a packed sum or too many contributions are bad."""
    transport, fragment = crossing.transport, crossing.fragment
    islands, local = range(transport.islands), transport.local
    chunks = cut(fragment.numel, transport.islands, dense.granule)
    plan = _Plan(
        dense=dense,
        feedback=crossing.codec if isinstance(crossing.codec, ErrorFeedback) else None,
        chunks=chunks,
        cuts=segments(chunks, dense.granule),
        shapes=wire.shapes_hash(crossing.mean),
    )
    numbers = range(len(plan.cuts))
    senders = [_Sender(crossing, plan, i, flat) for i, flat in enumerate(deltas)]
    coming = []
    for j in numbers:
        sizes = [[plan.row_bytes(j, k)] * transport.islands for k in local]
        coming.append(transport.start_swap([sender.rows(j) for sender in senders], sizes))
    bad = [sender.bad for sender in senders]
    bodies = [_open_all(crossing, plan, j, coming[j](), bad) for j in numbers]
    roll, _ = crossing.strike(bad)
    owners = [_Owner(crossing, plan, i, roll) for i in range(len(local))]
    coming = []
    for j in numbers:
        packed = [owner.combine(j, bodies[j][i]) for i, owner in enumerate(owners)]
        sizes = [[plan.row_bytes(j, k) for k in islands]] * len(local)
        coming.append(transport.start_swap([[row] * transport.islands for row in packed], sizes))
    bad = [dict[int, str]() for _ in local]
    for j in numbers:
        _read_all(crossing, plan, j, coming[j](), bad)
    if failed := agree(transport, bad):
        whose = "; ".join(f"chunk of island {k}: {why}" for k, why in failed.items())
        raise SyncError(f"round {crossing.round.index}: a packed sum is unusable ({whose}). Nothing was committed.")
    done = crossing.commit([sender.state_after() for sender in senders], roll)
    seconds = [owner.second for owner in owners]
    states = [{**s, SECOND: e} if e is not None else s for s, e in zip(done.states, seconds, strict=True)]
    return Exchanged(states=states, roll=roll)


class _Sender:
    """Local island `local` as it encodes its contribution, segment by segment."""

    def __init__(self, crossing: Crossing, plan: _Plan, local: int, flat: Tensor) -> None:
        self.crossing, self.plan, self.flat = crossing, plan, flat
        self.island, self.state = crossing.transport.local[local], crossing.states[local]
        self.seed = crossing.round_of(local).own_seed()
        self.silent = not crossing.takes_part(local)
        self.bad: dict[int, str] = {}
        """Islands whose contributions are unusable, this one's own among them if its encoder failed, and why."""
        self.error = self.left = None
        if plan.feedback is not None and not self.silent:
            self.error = plan.feedback.load(self.state)
            self.left = plan.feedback.room_for(self.error)

    def rows(self, j: int) -> list[Tensor]:
        """Segment j for each island; zeros (no header) from an island that is silent or has failed."""
        plan, device = self.plan, self.flat.device
        rows = [torch.empty(plan.row_bytes(j, k), dtype=torch.uint8, device=device) for k in range(len(plan.chunks))]
        for k, (start, stop) in enumerate(plan.cuts[j]):
            if self.silent or self.bad:
                break
            try:
                self._write(rows[k][wire.HEADER_BYTES :], start, stop)
            except NonFiniteError as failure:
                views = self.crossing.fragment.views(self.flat)
                self.bad[self.island] = str(non_finite(views, start + failure.index))
            plan.seal(rows[k], self.crossing, j, k)
        return [row.zero_() for row in rows] if self.silent or self.bad else rows

    def state_after(self) -> State:
        """The codec state if all of it was sent and used."""
        if self.plan.feedback is None or self.left is None:
            return self.state
        kept = {key: t for key, t in self.state.items() if key not in ("error", "error_scales")}
        return {**kept, **self.plan.feedback.store(self.left)}

    def _write(self, body: Tensor, start: int, stop: int) -> None:
        x, dense, feedback = self.flat[start:stop], self.plan.dense, self.plan.feedback
        if feedback is None or self.error is None or self.left is None:
            dense.write(x, body, self.seed, start)
        else:
            old, new = self.error[start:stop], self.left[start:stop]
            dense.write_fed_back(x, old, new, feedback.beta, body, self.seed, start)


class _Owner:
    """Local island `local` as it sums its chunk, segment by segment."""

    def __init__(self, crossing: Crossing, plan: _Plan, local: int, roll: RollCall) -> None:
        self.crossing, self.plan, self.roll = crossing, plan, roll
        self.island = crossing.transport.local[local]
        self.seed = crossing.round_of(local).own_seed(use=1)
        self.start, stop = plan.chunks[self.island]
        self.old = crossing.states[local].get(SECOND)
        self.second: Tensor | None = None
        """What the second encoding lost, fp32 of the chunk's size (under error feedback)."""
        if plan.feedback is not None:
            self.second = torch.empty(stop - self.start, device=crossing.fragment.mean.device)

    def combine(self, j: int, bodies: dict[int, Tensor]) -> Tensor:
        """Segment j of the sum, packed; zeros (no header: every island sees it) if it overflows."""
        plan, (start, stop) = self.plan, self.plan.cuts[j][self.island]
        total = self.crossing.fragment.mean[start:stop]
        data, body = wire.new(plan.dense.body_bytes(stop - start), total.device)
        used = [k for k in bodies if self.roll.weights[k] != 0]
        weights, parts = [self.roll.weights[k] for k in used], [bodies[k] for k in used]
        if plan.dense.merge(parts, weights, total, body, self.crossing.round.seed):
            self.second = None
            return plan.seal(data, self.crossing, j, self.island)
        plan.dense.sum_bodies(parts, weights, total)
        try:
            self._write(total, body, start)
        except NonFiniteError:
            return data.zero_()
        return plan.seal(data, self.crossing, j, self.island)

    def _write(self, total: Tensor, body: Tensor, start: int) -> None:
        dense, feedback = self.plan.dense, self.plan.feedback
        if feedback is None or self.second is None:
            dense.write(total, body, self.seed, start)
            return
        here = slice(max(start - self.start, 0), max(start - self.start, 0) + total.numel())
        old = torch.zeros_like(total) if self.old is None else self.old[here].to(total.device)
        dense.write_fed_back(total, old, self.second[here], feedback.beta, body, self.seed, start)


def _open_all(
    crossing: Crossing, plan: _Plan, j: int, received: Sequence[Sequence[Tensor]], bad: list[dict[int, str]]
) -> list[dict[int, Tensor]]:
    """For each local island the bodies of segment j of its chunk by sender; `bad` gets senders of unusable rows."""
    found = []
    for i, rows in enumerate(received):
        bodies: dict[int, Tensor] = {}
        for k, row in enumerate(rows):
            if crossing.roll.weights[k] == 0 or k in bad[i]:
                continue
            try:
                bodies[k] = plan.open(row, crossing, j, crossing.transport.local[i])
            except PayloadError as error:
                bad[i][k] = str(error)
        found.append(bodies)
    return found


def _read_all(
    crossing: Crossing, plan: _Plan, j: int, received: Sequence[Sequence[Tensor]], bad: list[dict[int, str]]
) -> None:
    """Decode segment j of all chunks into the mean; `bad` gets the owners of those that are unusable."""
    for i, rows in enumerate(received):
        if any(all(a is b for a, b in zip(rows, others, strict=True)) for others in received[:i]):
            continue  # islands in one process share what they get
        for k, row in enumerate(rows):
            start, stop = plan.cuts[j][k]
            try:
                plan.dense.read(plan.open(row, crossing, j, k), crossing.fragment.mean[start:stop])
            except PayloadError as error:
                bad[i][k] = str(error)
