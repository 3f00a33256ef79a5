"""Who takes part in a round: decided alike on every island, before and after payloads have crossed.

32 bytes per island at the start (round, arrival, tokens, norm; 8 more where lateness may stop the run, 8 more where
LoRA ranks shrink), and one byte per island and contribution once payloads have been looked at: a payload may be broken
on one link only, and all islands must leave out the same ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lowcomm.aggregate.base import Aggregator
from lowcomm.round.flood import flood
from lowcomm.round.joining import must_call_again
from lowcomm.transport.base import Transport
from lowcomm.types import Round, SyncError


@dataclass(frozen=True, kw_only=True)
class RollCall:
    """Who takes part in a round; equal on every island (reasons may be worded by whoever saw them)."""

    weights: list[float]
    """Weight of each island, 0 for one that is left out; they sum to 1."""
    tokens: list[float]
    dropped: dict[int, str]
    """Islands left out, with the reason; not those that were not sampled."""
    norms: list[float]
    """L2 norm of each island's pseudo-gradient."""
    arrivals_s: list[float] = field(default_factory=list)
    """Seconds from the end of the last roll call, which is the same moment everywhere, to each island's arrival."""
    stopping: list[int] = field(default_factory=list)
    """Islands that want the run to stop because an exchange was late."""
    expected: frozenset[int] | None = None
    """Islands that were sampled; None: all."""
    gone: frozenset[int] = frozenset()
    """Islands whose process is gone, as all know."""
    ranks: list[int] = field(default_factory=list)
    """Rank of the LoRA factors that each island sends; empty where ranks stay as they are."""

    def without(self, bad: Mapping[int, str], aggregator: Aggregator, round: Round, quorum: float) -> RollCall:
        """This roll with more islands left out. Raises SyncError if too few are left."""
        dropped = {**self.dropped, **bad}
        weights = _weights(self.tokens, dropped, aggregator, round, quorum, self.expected)
        return dataclasses.replace(self, weights=weights, dropped=dropped)


def call_roll(
    transport: Transport,
    aggregator: Aggregator,
    round: Round,
    tokens: Sequence[float],
    norms: Sequence[float],
    quorum: float,
    arrival_s: float = 0.0,
    stop: bool | None = None,
    expected: frozenset[int] | None = None,
    ranks: Sequence[int] = (),
    had: Sequence[int] = (),
) -> RollCall:
    """Exchange (round, arrival, tokens, norm) and decide who takes part.

    tokens, norms: one per local island. arrival_s: as in `RollCall.arrivals_s`, of this process. stop: its vote to stop
    the run; None: nobody votes. expected: islands that were sampled (None: all), of which a `quorum` (a fraction) must
    be left, or SyncError is raised. ranks: of LoRA factors by local island, where they shrink; had: by island, before.
    """
    vote = [] if stop is None else [float(stop)]
    rows = [
        torch.tensor([float(round.index), arrival_s, t, n, *vote, *map(float, ranks[i : i + 1])], dtype=torch.float64)
        for i, (t, n) in enumerate(zip(tokens, norms, strict=True))
    ]
    rows = [_of_island(transport, row) for row in rows]
    table, gone = gather_rows(transport, rows)
    while must_call_again(table, gone, round):
        table, gone = gather_rows(transport, rows)
    rounds = sorted(row[0] for k, row in enumerate(table) if k not in gone)
    expected_round = rounds[len(rounds) // 2]
    dropped: dict[int, str] = {}
    for island, row in enumerate(table):
        if expected is None or island in expected:
            why = "its process is gone" if island in gone else _unusable(row, expected_round, had[island : island + 1])
            dropped |= {island: why} if why else {}
    all_tokens = [row[2] for row in table]
    weights = _weights(all_tokens, dropped, aggregator, round, quorum, expected)
    return RollCall(
        weights=weights,
        tokens=all_tokens,
        dropped=dropped,
        norms=[row[3] for row in table],
        arrivals_s=[row[1] for row in table],
        stopping=[k for k, row in enumerate(table) if any(row[4 : 4 + len(vote)])],
        expected=expected,
        gone=frozenset(gone),
        # one that is left out sends nothing, and keeps the rank that it had
        ranks=[old if weights[k] == 0 else int(table[k][-1]) for k, old in enumerate(had)],
    )


def _unusable(row: Sequence[float], round_index: float, had: Sequence[int]) -> str | None:
    """Why what an island says of itself can't be used; None: it can."""
    index, _, count, norm, *_ = row
    if index != round_index:
        return f"it is in round {int(index)}, the others in {int(round_index)}"
    if not math.isfinite(norm):
        return f"its pseudo-gradient is not finite (norm {norm})"
    if not (math.isfinite(count) and count >= 0):
        return f"its token count is {count}"
    if had and not 1 <= row[-1] <= had[0]:
        return f"its rank is {row[-1]:g}, it had {had[0]}"
    return None


def gather_rows(transport: Transport, rows: Sequence[torch.Tensor]) -> tuple[list[list[float]], set[int]]:
    """The table, with zeros for islands whose process is gone, and these: who is lost to one is left out by all."""
    if not transport.goes_on:
        return transport.gather(rows).tolist(), set()
    came = transport.gather_present(rows)
    islands = range(transport.islands)
    lost = torch.tensor([k in transport.lost for k in islands], dtype=torch.uint8)
    said = flood(transport, [lost] * len(rows))
    gone = {k for k in islands if said[k]}
    empty = torch.zeros_like(rows[0])
    # whoever is lost after the first gather only was heard by all in it
    return [(empty if row is None or k in gone else row).tolist() for k, row in enumerate(came)], gone


def _of_island(transport: Transport, row: torch.Tensor) -> torch.Tensor:
    """The row of an island whose ranks each have one of their own: all ranks then see the same table."""
    rows = transport.inside(row)
    if len(rows) == 1:
        return row
    tokens, norm = rows[:, 2].sum(), rows[:, 3].square().sum().sqrt()
    return torch.stack([rows[0, 0], rows[:, 1].amax(), tokens, norm, *rows[:, 4:].amax(dim=0)])


def agree(transport: Transport, bad: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """The contributions that any island found unusable: island -> reason.

    bad: what each local island found. Costs one byte per island and contribution.
    """
    islands = range(transport.islands)
    rows = [torch.tensor([k in found for k in islands], dtype=torch.uint8) for found in bad]
    table = transport.gather([transport.inside(row).amax(dim=0) for row in rows]).bool()
    own = {k: why for found in bad for k, why in found.items()}
    own |= {k: found[k] for k, found in zip(transport.local, bad, strict=True) if k in found}  # who sent it knows best
    agreed: dict[int, str] = {}
    for k in islands:
        if bool(table[:, k].any()):
            others = [j for j in islands if bool(table[j, k])]
            agreed[k] = own.get(k, f"islands {others} could not use its payload")
    return agreed


def _weights(
    tokens: Sequence[float],
    dropped: Mapping[int, str],
    aggregator: Aggregator,
    round: Round,
    quorum: float,
    expected: frozenset[int] | None,
) -> list[float]:
    wanted = range(len(tokens)) if expected is None else expected
    kept = [t if i in wanted and i not in dropped else 0.0 for i, t in enumerate(tokens)]
    usable = len(wanted) - len(dropped)
    if usable < max(1.0, quorum * len(wanted)) or not sum(kept) > 0:
        reasons = "; ".join(f"island {i}: {why}" for i, why in dropped.items()) or "no island trained a token"
        raise SyncError(
            f"round {round.index} has no quorum: {usable} of {len(wanted)} islands are usable "
            f"({reasons}). Nothing was committed."
        )
    return aggregator.weights(kept)
