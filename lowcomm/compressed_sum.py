"""An all-reduce of packed vectors: fp32 is never sent, and every island ends with the same bits.

Vectors are cut at block bounds, one chunk per island. All-to-all of packed chunks; each island decodes and sums its
chunk in fp32 in island order with the islands' weights, encodes the sum once, and all-gathers it packed. Bytes per
island and way: 2 (n - 1) / n payloads for n islands. Under error feedback, what the second encoding loses is kept by
the island that did it, and added to its next sum.
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


def cut(numel: int, islands: int, granule: int) -> list[tuple[int, int]]:
    """(start, stop) of each island's chunk: equal multiples of `granule`, the last ones shorter or empty."""
    per_island = -(-numel // islands)
    step = -(-per_island // granule) * granule
    # an empty chunk is (0, 0), since encoders want to start at a multiple of the granule
    return [(k * step, min((k + 1) * step, numel)) if k * step < numel else (0, 0) for k in range(islands)]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a fragment is cut and marked on the wire."""

    dense: Dense
    feedback: ErrorFeedback | None
    chunks: list[tuple[int, int]]
    shapes: int

    def row_bytes(self, k: int) -> int:
        start, stop = self.chunks[k]
        return wire.HEADER_BYTES + self.dense.body_bytes(stop - start)

    def seal(self, data: Tensor, crossing: Crossing, k: int) -> Tensor:
        part = wire.Part(index=k, count=len(self.chunks))
        return wire.seal(data, self.dense.codec_id, self.shapes, crossing.round, part).data

    def open(self, row: Tensor, crossing: Crossing, k: int) -> Tensor:
        """The body of a row that holds chunk k, examined. Raises PayloadError."""
        start, stop = self.chunks[k]
        size = self.dense.body_bytes(stop - start)
        part = wire.Part(index=k, count=len(self.chunks))
        body = wire.open_body(
            Payload(data=row), self.dense.codec_id, self.shapes, crossing.round, body_bytes=size, part=part
        )
        self.dense.examine(body, stop - start)
        return body


def sum_packed(crossing: Crossing, dense: Dense, deltas: Sequence[Tensor]) -> Exchanged:
    """Fill the fragment's mean. Raises SyncError on every island if a packed sum or too many contributions are bad."""
    transport, fragment = crossing.transport, crossing.fragment
    islands, local = range(transport.islands), transport.local
    plan = _Plan(
        dense=dense,
        feedback=crossing.codec if isinstance(crossing.codec, ErrorFeedback) else None,
        chunks=cut(fragment.numel, transport.islands, dense.granule),
        shapes=wire.shapes_hash(crossing.mean),
    )
    rows, after, bad = [], [], []
    for i, flat in enumerate(deltas):
        sent, state, why = _encode(crossing, plan, i, flat)
        rows.append(sent)
        after.append(state)
        bad.append({local[i]: why} if why else {})
    received = transport.swap_rows(rows, [[plan.row_bytes(k)] * transport.islands for k in local])
    bodies = [_open_all(crossing, plan, i, received[i], bad[i]) for i in range(len(local))]
    roll, _ = crossing.strike(bad)
    sums, seconds = [], []
    for i, mine in enumerate(bodies):
        packed, second = _combine(crossing, plan, i, mine, roll)
        sums.append(packed)
        seconds.append(second)
    sizes = [plan.row_bytes(k) for k in islands]
    results = transport.swap_rows([[s] * transport.islands for s in sums], [sizes] * len(local))
    bad = []
    for rows in results:
        seen = any(all(a is b for a, b in zip(rows, others, strict=True)) for others in results[: len(bad)])
        bad.append({} if seen else _read(crossing, plan, rows))  # islands in one process share what they get
    if failed := agree(transport, bad):
        whose = "; ".join(f"chunk of island {k}: {why}" for k, why in failed.items())
        raise SyncError(f"round {crossing.round.index}: a packed sum is unusable ({whose}). Nothing was committed.")
    done = crossing.commit(after, roll)
    states = [{**s, SECOND: e} if e is not None else s for s, e in zip(done.states, seconds, strict=True)]
    return Exchanged(states=states, roll=roll)


def _encode(crossing: Crossing, plan: _Plan, local: int, flat: Tensor) -> tuple[list[Tensor], State, str | None]:
    """One row per island, the state after it, and why they can't be used, if so."""
    dense, feedback, state = plan.dense, plan.feedback, crossing.states[local]
    rows = [torch.empty(plan.row_bytes(k), dtype=torch.uint8, device=flat.device) for k in range(len(plan.chunks))]
    if not crossing.takes_part(local):
        return [row.zero_() for row in rows], state, None
    error = left = None
    if feedback is not None:
        error = feedback.load(state)
        left = feedback.room_for(error)
    seed = crossing.round_of(local).own_seed()
    for k, (start, stop) in enumerate(plan.chunks):
        body = rows[k][wire.HEADER_BYTES :]
        try:
            if feedback is None or error is None or left is None:
                dense.write(flat[start:stop], body, seed, start)
            else:
                old, new = error[start:stop], left[start:stop]
                dense.write_fed_back(flat[start:stop], old, new, feedback.beta, body, seed, start)
        except NonFiniteError as failure:
            why = str(non_finite(crossing.fragment.views(flat), start + failure.index))
            return [row.zero_() for row in rows], state, why
        plan.seal(rows[k], crossing, k)
    if feedback is not None and left is not None:
        kept = {key: t for key, t in state.items() if key not in ("error", "error_scales")}
        state = {**kept, **feedback.store(left)}
    return rows, state, None


def _open_all(
    crossing: Crossing, plan: _Plan, local: int, rows: Sequence[Tensor], bad: dict[int, str]
) -> dict[int, Tensor]:
    """Bodies of local island `local`'s chunk by sender; senders of unusable rows are added to `bad`."""
    bodies: dict[int, Tensor] = {}
    for k, row in enumerate(rows):
        if crossing.roll.weights[k] == 0 or k in bad:
            continue
        try:
            bodies[k] = plan.open(row, crossing, crossing.transport.local[local])
        except PayloadError as error:
            bad[k] = str(error)
    return bodies


def _combine(
    crossing: Crossing, plan: _Plan, local: int, bodies: dict[int, Tensor], roll: RollCall
) -> tuple[Tensor, Tensor | None]:
    """Local island `local`'s chunk of the sum, packed again, and what the packing lost (under error feedback)."""
    owner = crossing.transport.local[local]
    start, stop = plan.chunks[owner]
    total = crossing.fragment.mean[start:stop]
    data, body = wire.new(plan.dense.body_bytes(stop - start), total.device)
    used = [k for k in bodies if roll.weights[k] != 0]
    weights, parts = [roll.weights[k] for k in used], [bodies[k] for k in used]
    if plan.dense.merge(parts, weights, total, body, crossing.round.seed):
        return plan.seal(data, crossing, owner), None
    plan.dense.sum_bodies(parts, weights, total)
    seed = crossing.round_of(local).own_seed(use=1)
    second = None
    try:
        if plan.feedback is None:
            plan.dense.write(total, body, seed, start)
        else:
            old = crossing.states[local].get(SECOND)
            old = torch.zeros_like(total) if old is None else old.to(total.device)
            second = torch.empty_like(total)
            plan.dense.write_fed_back(total, old, second, plan.feedback.beta, body, seed, start)
    except NonFiniteError:
        return data.zero_(), None  # no header: every island sees that this chunk is unusable
    return plan.seal(data, crossing, owner), second


def _read(crossing: Crossing, plan: _Plan, rows: Sequence[Tensor]) -> dict[int, str]:
    """Decode all chunks into the mean; returns the owners of those that are unusable."""
    bad: dict[int, str] = {}
    for k, row in enumerate(rows):
        start, stop = plan.chunks[k]
        try:
            plan.dense.read(plan.open(row, crossing, k), crossing.fragment.mean[start:stop])
        except PayloadError as error:
            bad[k] = str(error)
    return bad
