"""The gathering of payloads, which every island decodes: sparse, low-rank and entropy-coded ones, and robust rules.

An all-gather (sizes first, if they differ and are not known), then each contribution is decoded and added in island
order, so that no island holds more than one dense vector; a rule that must see each holds all of them. Bytes per
island: (n - 1) payloads each way for n islands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.aggregate import Aggregate, Context
from lowcomm.codec import Codec, State, wire
from lowcomm.codec.packed import most_bytes
from lowcomm.exchange.base import Way
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.types import Contribution, Delta, Payload, PayloadError, Round


@dataclass(frozen=True, kw_only=True)
class Gather(Way):
    """Sends whole payloads to all."""

    def carry(self, out: Outgoing, cohort: Cohort) -> Arrived:
        encoded = [self._encode(out, cohort, local) for local in range(len(out.deltas))]
        rows = [row for row, _, _ in encoded]
        mine = [{k: why} if why else {} for k, (_, _, why) in zip(self.transport.local, encoded, strict=True)]
        payloads = [Payload(data=row.contiguous()) for row in self._swap(out, cohort, rows)]
        found, contributions = self._decode(out, cohort, payloads)
        cohort, changed = self.leave_out(out, cohort, [{**found, **own} for own in mine])
        if changed:
            failed, contributions = self._decode(out, cohort, payloads)
            if failed:
                raise PayloadError(f"payloads failed only at the second look: {failed}")
        aggregate = None if self.aggregator.needs == "sum" else self._combine(out, contributions)
        arrived = self.arrived(out, cohort, [state for _, state, _ in encoded], aggregate)
        return dataclasses.replace(arrived, payload_bytes=[p.nbytes for p in payloads])

    def _encode(self, out: Outgoing, cohort: Cohort, local: int) -> tuple[Tensor, State, str | None]:
        """The row to send, the state after it, and why it can't be used, if so.

        An island whose encoder fails still sends as many bytes as the others wait for.
        """
        codec, flat, state = self.codec.at(out.round), out.deltas[local], out.states[local]
        if not self.takes_part(cohort, local):
            return torch.empty(0, dtype=torch.uint8, device=flat.device), state, None
        like = out.part(out.fragment.views(flat), self.transport.local[local], cohort)
        own = self.round_of(out, local)
        try:
            payload, after = codec.encode(like, state, own)
            return payload.data, after, None
        except PayloadError as error:
            flat.zero_()
            payload, _ = codec.encode(like, codec.init(like), own)
            return payload.data.zero_(), state, str(error)

    def _swap(self, out: Outgoing, cohort: Cohort, rows: Sequence[Tensor]) -> list[Tensor]:
        """Every island's row, of a size that all know beforehand if they can."""
        transport, codec = self.transport, self.codec.at(out.round)
        everyone = all(w != 0 for w in cohort.weights)  # else some rows are empty, which all islands know
        if not codec.fixed_size or not (everyone or out.cut is not None):
            return transport.gather_sized(rows, wire.HEADER_BYTES + most_bytes(out.fragment.views(out.fragment.mean)))
        if out.cut is None:
            return list(transport.gather(rows))
        sizes = _sizes_bytes(codec, out, cohort)
        return transport.swap_rows([[row] * transport.islands for row in rows], [sizes] * len(rows))[0]

    def _decode(
        self, out: Outgoing, cohort: Cohort, payloads: Sequence[Payload]
    ) -> tuple[dict[int, str], list[Contribution]]:
        """Decode the cohort's payloads: into the mean, or into a list where a rule must see each.

        Returns why those of some islands could not be decoded, and the list.
        """
        mean, codec, bad = out.fragment.views(out.fragment.mean), self.codec.at(out.round), dict[int, str]()
        one_by_one = self.aggregator.needs == "sum"
        contributions: list[Contribution] = []
        if one_by_one:
            out.fragment.mean.zero_()
        for island, (payload, weight) in enumerate(zip(payloads, cohort.weights, strict=True)):
            if weight == 0:
                continue
            theirs = dataclasses.replace(out.round, island=island)
            try:
                if one_by_one:
                    codec.accumulate(payload, weight, mean, theirs)
                else:
                    delta = codec.decode(payload, out.part(mean, island, cohort), theirs)
                    check_finite(delta)  # a rule compares values, and nothing compares with NaN
                    one = Contribution(island=island, delta=delta, weight=weight, round=out.round.index)
                    contributions.append(one)
            except PayloadError as error:
                bad[island] = str(error)
        return bad, contributions

    def _combine(self, out: Outgoing, contributions: Sequence[Contribution]) -> Aggregate:
        """Fill the mean with what a rule makes of contributions that all ranks and islands could decode.

        Not before they have agreed on these: a rule may sum tables over an island's ranks, which must all do so.
        """
        mean = out.fragment.views(out.fragment.mean)
        made = self.aggregator.combine(contributions, self._context(out))
        for view, value in zip(mean.values(), made.delta.values(), strict=True):
            view.copy_(value)
        return made

    def _context(self, out: Outgoing) -> Context:
        return Context(
            start=out.anchors[0].named,
            round=out.round,
            state=out.rule_state,
            losses=out.losses,
            sum_ranks=lambda table: self.transport.inside(table.reshape(-1)).sum(dim=0).view_as(table),
        )


def check_finite(delta: Delta) -> None:
    """Raise PayloadError for values that are not finite, whatever norm their sender has said."""
    for name, value in delta.items():
        if not bool(value.isfinite().all()):
            raise PayloadError(f"the decoded {name} is not finite")


def _sizes_bytes(codec: Codec, out: Outgoing, cohort: Cohort) -> list[int]:
    """Size of each island's payload, which a codec of fixed size gives by its shapes; 0 of one that sends nothing."""
    by_shapes: dict[tuple[torch.Size, ...], int] = {}
    sizes: list[int] = []
    mean = out.fragment.views(out.fragment.mean)
    for island, weight in enumerate(cohort.weights):
        like = out.part(mean, island, cohort)
        shapes = tuple(t.shape for t in like.values())
        if weight != 0 and shapes not in by_shapes:
            by_shapes[shapes] = _bytes_of(codec, like, out.round)
        sizes.append(by_shapes[shapes] if weight != 0 else 0)
    return sizes


def _bytes_of(codec: Codec, like: Delta, round: Round) -> int:
    zeros = {name: torch.zeros_like(t) for name, t in like.items()}
    return codec.encode(zeros, codec.init(zeros), round)[0].nbytes
