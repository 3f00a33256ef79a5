"""Dense packed vectors on their way in segments: while one travels, the next is encoded.

A vector is cut in chunks (one per island that sums it, or one for all), chunks in segments of equal size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lowcomm_kernels.errors import NonFiniteError
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import State
from lowcomm.codec.dense import Dense
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.flat import non_finite
from lowcomm.exchange.base import Way
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Outgoing
from lowcomm.types import Payload, Round

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
    """Segment by segment the (start, stop) of each chunk's part: multiples of `granule`, (0, 0) where none is left."""
    step = -(-SEGMENT // granule) * granule
    longest = max(stop - start for start, stop in chunks)
    return [
        [(start + at, min(start + at + step, stop)) if start + at < stop else (0, 0) for start, stop in chunks]
        for at in range(0, max(longest, 1), step)
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a fragment is cut and marked on the wire: `cuts[j][k]` is segment j of chunk k."""

    dense: Dense
    feedback: ErrorFeedback | None
    chunks: list[Bounds]
    cuts: list[list[Bounds]]
    shapes: int
    round: Round

    @classmethod
    def of(cls, way: Way, out: Outgoing, chunks: list[Bounds] | None = None) -> Plan:
        """For the fragment that goes out; chunks None: one for each island that is not lost, of equal size."""
        codec = way.codec.at(out.round)
        feedback = codec if isinstance(codec, ErrorFeedback) else None
        dense = codec if feedback is None else feedback.codec
        assert isinstance(dense, Dense)
        if chunks is None:
            there = way.transport.present
            owned = dict(zip(there, cut(out.fragment.numel, len(there), dense.granule), strict=True))
            chunks = [owned.get(k, (0, 0)) for k in range(way.transport.islands)]
        return cls(
            dense=dense,
            feedback=feedback,
            chunks=chunks,
            cuts=segments(chunks, dense.granule),
            shapes=wire.shapes_hash(out.fragment.views(out.fragment.mean)),
            round=out.round,
        )

    def row_bytes(self, j: int, k: int) -> int:
        start, stop = self.cuts[j][k]
        return wire.HEADER_BYTES + self.dense.body_bytes(stop - start)

    def part(self, j: int, k: int) -> wire.Part:
        return wire.Part(index=j * len(self.chunks) + k, count=len(self.cuts) * len(self.chunks))

    def seal(self, data: Tensor, own: Round, j: int, k: int) -> Tensor:
        """The row that holds segment j of chunk k; own: the round as its sender encodes it."""
        return wire.seal(data, self.dense.codec_id, self.shapes, own, self.part(j, k)).data

    def open(self, row: Tensor, j: int, k: int, sender: int) -> Tensor:
        """The body of a row of island `sender` that holds segment j of chunk k, examined. Raises PayloadError."""
        start, stop = self.cuts[j][k]
        size = self.dense.body_bytes(stop - start)
        payload, theirs = Payload(data=row), dataclasses.replace(self.round, island=sender)
        body = wire.open_body(payload, self.dense.codec_id, self.shapes, theirs, body_bytes=size, part=self.part(j, k))
        self.dense.examine(body, stop - start)
        return body


class Sender:
    """Local island `local` as it encodes its contribution, segment by segment."""

    def __init__(self, way: Way, out: Outgoing, cohort: Cohort, plan: Plan, local: int) -> None:
        self.fragment, self.plan, self.flat = out.fragment, plan, out.deltas[local]
        self.island, self.state = way.transport.local[local], out.states[local]
        self.own = way.round_of(out, local)
        self.seed = self.own.own_seed()
        self.silent = not way.takes_part(cohort, local)
        self.bad: dict[int, str] = {}
        """Islands whose contributions are unusable, this one's own among them if its encoder failed, and why."""
        self.error = self.left = None
        if plan.feedback is not None and not self.silent:
            self.error = plan.feedback.load(self.state)
            self.left = plan.feedback.room_for(self.error)

    def rows(self, j: int) -> list[Tensor]:
        """Segment j of each chunk; zeros (no header) from an island that is silent or has failed."""
        plan, device = self.plan, self.flat.device
        rows = [torch.empty(plan.row_bytes(j, k), dtype=torch.uint8, device=device) for k in range(len(plan.chunks))]
        for k, (start, stop) in enumerate(plan.cuts[j]):
            if self.silent or self.bad:
                break
            try:
                self._write(rows[k][wire.HEADER_BYTES :], start, stop)
            except NonFiniteError as failure:
                views = self.fragment.views(self.flat)
                self.bad[self.island] = str(non_finite(views, start + failure.index))
            plan.seal(rows[k], self.own, j, k)
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
