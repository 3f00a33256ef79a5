"""Payloads that every island gets and decodes: sparse, low-rank and entropy-coded ones, and robust aggregators.

An all-gather (sizes first, if they differ and are not known), then each contribution is decoded and added in island
order, so that no island holds more than one dense vector. Bytes per island: (n - 1) payloads each way for n islands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.aggregate.base import Combined
from lowcomm.codec.base import State
from lowcomm.round.compressed import Crossing, Exchanged
from lowcomm.round.roll_call import RollCall
from lowcomm.round.shrinking import part, sizes_bytes
from lowcomm.types import Contribution, Payload, PayloadError


def gather_payloads(crossing: Crossing, deltas: Sequence[Tensor]) -> Exchanged:
    """Fill the fragment's mean. Raises SyncError without a quorum of usable payloads."""
    rows: list[Tensor] = []
    after: list[State] = []
    mine: list[dict[int, str]] = []
    for local, flat in enumerate(deltas):
        row, state, why = _encode(crossing, local, flat)
        rows.append(row)
        after.append(state)
        mine.append({crossing.transport.local[local]: why} if why else {})
    payloads = [Payload(data=row.contiguous()) for row in _exchange(crossing, rows)]
    found, combined = _combine(crossing, payloads, crossing.roll)
    roll, changed = crossing.strike([{**found, **own} for own in mine])
    if changed:
        failed, combined = _combine(crossing, payloads, roll)
        if failed:
            raise PayloadError(f"payloads failed only at the second look: {failed}")
    done = crossing.commit(after, roll, combined)
    return dataclasses.replace(done, payload_bytes=[p.nbytes for p in payloads])


def _exchange(crossing: Crossing, rows: Sequence[Tensor]) -> list[Tensor]:
    """Every island's row, of a size that all know beforehand if they can."""
    transport, roll, codec = crossing.transport, crossing.roll, crossing.codec
    everyone = all(w != 0 for w in roll.weights)  # else some rows are empty, which all islands know
    if not codec.fixed_size or not (everyone or roll.ranks):
        return transport.gather_sized(rows)
    if not roll.ranks:
        return list(transport.gather(rows))
    sizes = sizes_bytes(codec, crossing.mean, roll, crossing.round)
    return transport.swap_rows([[row] * transport.islands for row in rows], [sizes] * len(rows))[0]


def _encode(crossing: Crossing, local: int, flat: Tensor) -> tuple[Tensor, State, str | None]:
    """The row to send, the state after it, and why it can't be used, if so.

    An island whose encoder fails still sends as many bytes as the others wait for.
    """
    codec, views = crossing.codec, crossing.fragment.views(flat)
    like = part(crossing.roll, views, crossing.transport.local[local])
    if not crossing.takes_part(local):
        return torch.empty(0, dtype=torch.uint8, device=flat.device), crossing.states[local], None
    own = crossing.round_of(local)
    try:
        payload, state = codec.encode(like, crossing.states[local], own)
        return payload.data, state, None
    except PayloadError as error:
        flat.zero_()
        payload, _ = codec.encode(like, codec.init(like), own)
        return payload.data.zero_(), crossing.states[local], str(error)


def _combine(crossing: Crossing, payloads: Sequence[Payload], roll: RollCall) -> tuple[dict[int, str], Combined | None]:
    """Fill the mean from the payloads of everyone on the roll; returns those that could not be decoded, and more."""
    mean, codec, bad = crossing.mean, crossing.codec, dict[int, str]()
    one_by_one = crossing.aggregator.needs == "sum"
    contributions: list[Contribution] = []
    if one_by_one:
        crossing.fragment.mean.zero_()
    for island, (payload, weight) in enumerate(zip(payloads, roll.weights, strict=True)):
        if weight == 0:
            continue
        theirs = dataclasses.replace(crossing.round, island=island)
        try:
            if one_by_one:
                codec.accumulate(payload, weight, mean, theirs)
            else:
                delta = codec.decode(payload, part(roll, mean, island), theirs)
                index = crossing.round.index
                contributions.append(Contribution(island=island, delta=delta, weight=weight, round=index))
        except PayloadError as error:
            bad[island] = str(error)
    if one_by_one or bad:
        return bad, None
    start = crossing.fragment.views(crossing.fragment.weights)
    combined = crossing.aggregator.combine(contributions, start, crossing.round)
    for view, value in zip(mean.values(), combined.delta.values(), strict=True):
        view.copy_(value)
    return bad, combined
