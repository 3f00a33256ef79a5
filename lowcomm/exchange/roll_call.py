"""The roll call: islands decide alike who takes part in a round, before and after payloads have crossed.

32 bytes per island at the start (round, arrival, tokens, norm; 8 more where lateness may stop the run, 8 for each
number of a section), and one byte per island and contribution once payloads have been looked at: a payload may be
broken on one link only, and all islands must leave out the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from lowcomm.aggregate import Aggregator
from lowcomm.exchange.agreement import maximum
from lowcomm.exchange.joining import must_call_again
from lowcomm.state.cohort import Cohort, Section, weigh
from lowcomm.state.norms import NormHistory
from lowcomm.transport.base import Transport
from lowcomm.types import Round


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
    sections: Mapping[str, Section] | None = None,
    history: NormHistory | None = None,
    without: Mapping[int, str] | None = None,
) -> Cohort:
    """Exchange (round, arrival, tokens, norm) and what sections say, and decide who takes part.

    tokens, norms: one per local island. arrival_s: as in `Cohort.arrivals_s`, of this process. stop: its vote to stop
    the run; None: nobody votes. expected: islands that were sampled (None: all), of which a `quorum` (a fraction) must
    be left, or SyncError is raised. history: norms that rounds before have committed; None: nobody is judged by them.
    without: islands that all know to be left out, with the reason.
    """
    sections, vote = sections or {}, [] if stop is None else [float(stop)]
    rows = [
        [float(round.index), arrival_s, t, n, *vote, *(x for s in sections.values() for x in s.own[i])]
        for i, (t, n) in enumerate(zip(tokens, norms, strict=True))
    ]
    rows = [_of_island(transport, row) for row in torch.tensor(rows, dtype=torch.float64).unbind()]
    table, gone = gather_rows(transport, rows)
    while must_call_again(table, gone, round):
        table, gone = gather_rows(transport, rows)
    said = _split([row[4 + len(vote) :] for row in table], sections)
    wanted = range(len(table)) if expected is None else sorted(expected)
    dropped = _dropped(table, _causes(transport, gone), wanted, sections, said)
    all_tokens = [row[2] for row in table]
    dropped = {**{k: why for k, why in (without or {}).items() if k in wanted}, **dropped}
    if history is not None:
        usable = [k for k in wanted if all_tokens[k] > 0 and k not in dropped]
        dropped |= _far(history, table, usable, aggregator)
    weights = weigh(all_tokens, dropped, aggregator, round, quorum, expected)
    return Cohort(
        weights=weights,
        tokens=all_tokens,
        dropped=dropped,
        norms=[row[3] for row in table],
        arrivals_s=[row[1] for row in table],
        stopping=[k for k, row in enumerate(table) if any(row[4 : 4 + len(vote)])],
        expected=expected,
        gone=frozenset(gone),
        sections={n: _stand_in(s, said[n], weights) for n, s in sections.items()},
    )


def _far(
    history: NormHistory, table: Sequence[Sequence[float]], usable: Sequence[int], rule: Aggregator
) -> dict[int, str]:
    """Islands with a norm far above the usual; none where the others are too few for a rule that withstands them."""
    found = history.too_large([row[3] for row in table], [row[2] for row in table], usable)
    needed = len(usable) - len(found) < rule.fewest and len(found) <= rule.withstands
    return {} if needed else found


def _causes(transport: Transport, gone: Collection[int]) -> dict[int, str]:
    """Why islands are gone, in the same words everywhere."""
    known = {} if transport.goes_on else transport.lost  # else each may have heard of another cause
    return {k: known.get(k, "its process is gone") for k in gone}


def _dropped(
    table: Sequence[Sequence[float]],
    gone: Mapping[int, str],
    wanted: Iterable[int],
    sections: Mapping[str, Section],
    said: Mapping[str, list[list[float]]],
) -> dict[int, str]:
    """The wanted islands that can't take part, with the reason."""
    rounds = sorted(row[0] for k, row in enumerate(table) if k not in gone)
    expected_round = rounds[len(rounds) // 2]
    dropped: dict[int, str] = {}
    for k in wanted:
        why = gone.get(k) or _unusable(table[k], expected_round)
        why = why or next((w for n, s in sections.items() if s.refuse and (w := s.refuse(k, said[n][k]))), None)
        dropped |= {k: why} if why else {}
    return dropped


def _split(rows: Sequence[list[float]], sections: Mapping[str, Section]) -> dict[str, list[list[float]]]:
    """By section what every island said in it."""
    said: dict[str, list[list[float]]] = {}
    start = 0
    for name, section in sections.items():
        stop = start + len(section.own[0])
        said[name], start = [row[start:stop] for row in rows], stop
    return said


def _stand_in(section: Section, said: list[list[float]], weights: Sequence[float]) -> list[list[float]]:
    """What an island said, or what stands for it where it is left out."""
    if section.otherwise is None:
        return said
    return [own if w != 0 else other for own, other, w in zip(said, section.otherwise, weights, strict=True)]


def _unusable(row: Sequence[float], round_index: float) -> str | None:
    """Why what an island says of itself can't be used; None: it can."""
    index, _, count, norm, *_ = row
    if index != round_index:
        return f"it is in round {int(index)}, the others in {int(round_index)}"
    if math.isnan(norm) and count < 0:
        return f"its loss or gradients were not finite at inner step {int(-count)}"
    if not math.isfinite(norm):
        return f"its pseudo-gradient is not finite (norm {norm})"
    if not (math.isfinite(count) and count >= 0):
        return f"its token count is {count}"
    return None


def gather_rows(transport: Transport, rows: Sequence[torch.Tensor]) -> tuple[list[list[float]], set[int]]:
    """The table, with zeros for islands whose process is gone, and these: who is lost to one is left out by all."""
    if not transport.goes_on:
        table = transport.gather(rows).tolist()
        return table, set(transport.lost)
    came = transport.gather_present(rows)
    islands = range(transport.islands)
    lost = torch.tensor([k in transport.lost for k in islands], dtype=torch.uint8)
    said = maximum(transport, [lost] * len(rows))
    gone = {k for k in islands if said[k]}
    empty = torch.zeros_like(rows[0])
    # whoever is lost after the first gather only was heard by all in it
    return [(empty if row is None or k in gone else row).tolist() for k, row in enumerate(came)], gone


def _of_island(transport: Transport, row: torch.Tensor) -> torch.Tensor:
    """The row of an island whose ranks each have one of their own: all ranks then see the same table."""
    if transport.ranks == 1:
        return row
    rows = transport.inside(row)
    least = rows[:, 2].amin()
    tokens = rows[:, 2].sum() if not least < 0 else least  # one that was set aside says its step
    norm = rows[:, 3].square().sum().sqrt()
    return torch.stack([rows[0, 0], rows[:, 1].amax(), tokens, norm, *rows[:, 4:].amax(dim=0)])


def agree(transport: Transport, bad: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """The contributions that any island found unusable: island -> reason.

    bad: what each local island found. Costs one byte per island and contribution.
    """
    islands = range(transport.islands)
    nothing = torch.zeros(transport.islands, dtype=torch.uint8)
    rows = [torch.tensor([k in found for k in islands], dtype=torch.uint8) if found else nothing for found in bad]
    pooled = {key: transport.inside(row).amax(dim=0) for key, row in {id(row): row for row in rows}.items()}
    table = transport.gather([pooled[id(row)] for row in rows])
    whose = table.any(dim=0).tolist()
    own = {k: why for found in bad for k, why in found.items()}
    own |= {k: found[k] for k, found in zip(transport.local, bad, strict=True) if k in found}  # who sent it knows best
    agreed: dict[int, str] = {}
    for k in islands:
        if whose[k]:
            others = [j for j in islands if bool(table[j, k])]
            agreed[k] = own.get(k, f"islands {others} could not use its payload")
    return agreed
