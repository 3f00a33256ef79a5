"""Islands whose loops end at different steps: one that is done takes part in the others' remaining rounds.

    finish:     gather the row of a roll call with -1 - (steps done) in place of the round, until all rows are like that
    roll call:  while one of its rows is like that, call the roll again: whoever is done rests up to this round

A resting island sends a Delta of zeros with weight 0 (error feedback: what it had kept back), and takes the result.
Cost: one row of a roll call (32 bytes or a few more) per island when all end together, once more for each round that
is joined. Raises SyncError, on every island alike and with all their steps, where the schedule of one that is done has
no exchange left, or is in another round. Averaged gradients have no roll call: see `data_parallel_steps`.
Reduces to: a gather in which nobody is named, when all islands end at the same step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from lowcomm.types import Round, SyncError

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD

HORIZON = 1 << 16
"""Inner steps ahead in which the next exchange is looked for."""


def steps_done(row: Sequence[float]) -> int | None:
    """Inner steps after which the island of this row has called `finish`; None: it calls the roll of a round."""
    return int(-1 - row[0]) if row[0] < 0 else None


def finishing_row(sync: LocalSGD) -> torch.Tensor:
    """What an island that is done sends in place of its row of the roll call, float64 and as long as that."""
    vote, ranks = sync.deadlines.on_late != "wait", bool(sync.ranks)
    row = torch.zeros(4 + vote + ranks, dtype=torch.float64)
    row[0], row[1], row[2] = -1.0 - sync.step, float(sync.round), float(_steps_to_next_exchange(sync) or 0)
    return row


def must_call_again(table: Sequence[Sequence[float]], gone: Collection[int], round: Round) -> bool:
    """Whether an island of a roll call is done, so that the roll is called again once it has come to this round.

    Raises SyncError if it can't come.
    """
    done = {k: steps for k, row in enumerate(table) if k not in gone and (steps := steps_done(row)) is not None}
    stuck = [k for k in done if table[k][1] != round.index or not table[k][2]]
    if stuck:
        raise SyncError(_apart(done, f"this one exchanges round {round.index} after step {round.step}"))
    return bool(done)


def all_done(sync: LocalSGD, table: Sequence[Sequence[float]]) -> bool:
    """Whether every island has called `finish`. Raises SyncError if the others train on and this one can't join."""
    done = {k: steps for k, row in enumerate(table) if (steps := steps_done(row)) is not None}
    others = {k: int(row[0]) for k, row in enumerate(table) if k not in done and k not in sync.transport.lost}
    if not others:
        return True
    index = next(iter(others.values()))
    if any(table[k][1] != index or not table[k][2] for k in done):
        raise SyncError(_apart(done, f"islands {sorted(others)} exchange round {index} after a later step"))
    return False


def rest_until_exchange(sync: LocalSGD) -> None:
    """Let the local islands sit inner steps out up to and with the next exchange of the schedule."""
    before = sync.round
    while sync.round == before and not sync.flights:
        for island in range(len(sync.replicas)):
            sync.rest(island)


def _steps_to_next_exchange(sync: LocalSGD) -> int | None:
    """Inner steps up to the next exchange; None: there is none, or gradients are averaged before it."""
    if sync.pending:
        return 1
    for ahead in range(1, HORIZON):
        action = sync.action_at(sync.step + ahead)
        if action.average_gradients:
            return None
        if action.sync:
            return ahead
    return None


def _apart(done: dict[int, int], others: str) -> str:
    ends = ", ".join(f"island {k} finished after step {steps}" for k, steps in sorted(done.items()))
    return (
        f"the islands' loops end apart: {ends}, but {others}. Nothing was committed: local weights are kept. "
        "Fix: give every island the same number of steps"
    )
