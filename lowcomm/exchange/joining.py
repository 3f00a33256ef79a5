"""Islands whose loops end at different steps: one that is done takes part in the others' remaining rounds.

    finish:     gather the row of a roll call with -1 - (steps done) in place of the round, until all rows are like that
    roll call:  while one of its rows is like that, call the roll again: whoever is done rests up to this round

A resting island sends a Delta of zeros with weight 0 (error feedback: what it had kept back), and takes the result.
Cost: one row of a roll call (32 bytes or a few more) per island when all end together, once more for each round that
is joined. Raises SyncError, on every island alike and with all their steps, where the schedule of one that is done has
no exchange left, or is in another round. Averaged gradients have no roll call.
Reduces to: a gather in which nobody is named, when all islands end at the same step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from lowcomm.types import Round, SyncError


def finishing_row(step: int, round_index: int, steps_to_next: int | None, numbers: int) -> torch.Tensor:
    """What an island that is done sends in place of its row of the roll call: float64, as long as that.

    step: inner steps done. steps_to_next: inner steps up to its next exchange; None: there is none. numbers: in the
    row beyond the first four.
    """
    row = torch.zeros(4 + numbers, dtype=torch.float64)
    row[0], row[1], row[2] = -1.0 - step, float(round_index), float(steps_to_next or 0)
    return row


def must_call_again(table: Sequence[Sequence[float]], gone: Collection[int], round: Round) -> bool:
    """Whether an island of a roll call is done, so that the roll is called again once it has come to this round.

    Raises SyncError if it can't come.
    """
    done = {k: steps for k, row in enumerate(table) if k not in gone and (steps := _steps_done(row)) is not None}
    if not done:
        return False
    if any(table[k][1] != round.index or not table[k][2] for k in done):
        raise SyncError(_apart(done, f"this one exchanges round {round.index} after step {round.step}"))
    return True


def all_done(table: Sequence[Sequence[float]], gone: Collection[int]) -> bool:
    """Whether every island is at the end of its loop. Raises SyncError if others train on and one can't join them."""
    done = {k: steps for k, row in enumerate(table) if k not in gone and (steps := _steps_done(row)) is not None}
    others = {k: int(row[0]) for k, row in enumerate(table) if k not in done and k not in gone}
    if not others:
        return True
    index = next(iter(others.values()))
    if any(table[k][1] != index or not table[k][2] for k in done):
        raise SyncError(_apart(done, f"islands {sorted(others)} exchange round {index} after a later step"))
    return False


def _steps_done(row: Sequence[float]) -> int | None:
    """Inner steps after which the island of this row has called `finish`; None: it calls the roll of a round."""
    return int(-1 - row[0]) if row[0] < 0 else None


def _apart(done: dict[int, int], others: str) -> str:
    ends = ", ".join(f"island {k} finished after step {steps}" for k, steps in sorted(done.items()))
    return (
        f"the islands' loops end apart: {ends}, but {others}. Nothing was committed: local weights are kept. "
        "Fix: give every island the same number of steps"
    )
