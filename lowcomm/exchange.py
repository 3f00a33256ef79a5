"""One fragment's way through codec, transport and aggregation; nothing is committed here.

First a roll call (40 bytes per island), so that all islands leave out the same contributions and use the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregator
from lowcomm.codec.base import Codec, State
from lowcomm.fragment import Fragment
from lowcomm.transport.base import Transport
from lowcomm.types import Contribution, Payload, Round, SyncError


@dataclass(frozen=True, kw_only=True)
class RollCall:
    """Who takes part in a round; equal on every island."""

    weights: list[float]
    """Weight of each island, 0 for one that is left out; they sum to 1."""
    tokens: list[float]
    dropped: dict[int, str]
    """Islands left out, with the reason."""
    norms: list[float]
    """L2 norm of each island's pseudo-gradient."""


def call_roll(
    transport: Transport,
    aggregator: Aggregator,
    round: Round,
    tokens: Sequence[float],
    norms: Sequence[float],
    quorum: float,
) -> RollCall:
    """Exchange (round, step, tokens, norm) and decide who takes part.

    tokens, norms: one per local island. Raises SyncError if fewer than `quorum` (a fraction) of the islands are left.
    """
    rows = [
        torch.tensor([float(round.index), float(round.step), t, n], dtype=torch.float64)
        for t, n in zip(tokens, norms, strict=True)
    ]
    table = transport.gather(rows).tolist()
    expected_round = sorted(row[0] for row in table)[len(table) // 2]
    dropped: dict[int, str] = {}
    for island, (index, _, count, norm) in enumerate(table):
        if index != expected_round:
            dropped[island] = f"it is in round {int(index)}, the others in {int(expected_round)}"
        elif not math.isfinite(norm):
            dropped[island] = f"its pseudo-gradient is not finite (norm {norm})"
        elif not (math.isfinite(count) and count >= 0):
            dropped[island] = f"its token count is {count}"
    kept = [0.0 if i in dropped else row[2] for i, row in enumerate(table)]
    if len(table) - len(dropped) < max(1.0, quorum * len(table)) or not sum(kept) > 0:
        reasons = "; ".join(f"island {i}: {why}" for i, why in dropped.items()) or "no island trained a token"
        raise SyncError(
            f"round {round.index} has no quorum: {len(table) - len(dropped)} of {len(table)} islands are usable "
            f"({reasons}). Nothing was committed."
        )
    return RollCall(
        weights=aggregator.weights(kept),
        tokens=[row[2] for row in table],
        dropped=dropped,
        norms=[row[3] for row in table],
    )


def aggregate_into_mean(
    fragment: Fragment,
    deltas: Sequence[Tensor],
    transport: Transport,
    codec: Codec,
    aggregator: Aggregator,
    states: Sequence[State],
    roll: RollCall,
    round: Round,
) -> list[State]:
    """Fill `fragment.mean` with the aggregate of all islands' deltas; returns the codec states to commit.

    deltas: flat fp32 of `fragment.size`, one per local island. Raises SyncError or PayloadError.
    """
    if codec_is_identity(codec) and aggregator.needs == "sum":
        transport.weighted_sum(deltas, roll.weights, fragment.mean)
        return list(states)
    payloads: list[Payload] = []
    after: list[State] = []
    for flat, state in zip(deltas, states, strict=True):
        payload, new_state = codec.encode(fragment.views(flat), state, round)
        payloads.append(payload)
        after.append(new_state)
    rows = [p.data for p in payloads]
    received = list(transport.gather(rows)) if codec.fixed_size else transport.gather_sized(rows)
    like = fragment.views(fragment.mean)
    contributions = [
        Contribution(
            island=i,
            delta=codec.decode(Payload(data=row.contiguous()), like),
            weight=roll.weights[i],
            round=round.index,
        )
        for i, row in enumerate(received)
        if roll.weights[i] != 0
    ]
    for view, value in zip(like.values(), aggregator(contributions).values(), strict=True):
        view.copy_(value)
    return after


def codec_is_identity(codec: Codec) -> bool:
    """Whether fp32 vectors may be summed on the way without being encoded at all."""
    from lowcomm.codec.fp32 import Fp32

    return isinstance(codec, Fp32)
