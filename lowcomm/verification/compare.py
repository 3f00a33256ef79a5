"""The comparison of two transcripts of a run: the first entry that differs, by bisection.

First over the chain of rounds, each value of which stands for all rounds before it, then down the Merkle tree of the
round's entries, of all islands: about log2(rounds) + log2(islands (H + 1)) pairs of hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.types import CheckpointError
from lowcomm.verification.merkle import first_break, first_difference, link, root_of
from lowcomm.verification.transcript import COMMIT, Entry, Transcript

Rounds = list[list[Entry]]
"""Of every round the entries of all islands, in the order of steps; exchanges come last."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where two transcripts part."""

    round: int
    """Index in what was compared."""
    ours: Entry
    theirs: Entry

    def __str__(self) -> str:
        what = "the exchange after inner step" if self.ours.kind == COMMIT else "inner step"
        return f"island {self.ours.island}, {what} {self.ours.step}"


def rounds_of(transcripts: Sequence[Transcript], after_step: int = 0) -> Rounds:
    """The entries of all islands by round, without those until `after_step`.

    Raises CheckpointError for islands that have not committed the same exchanges.
    """
    parts = [[s for s in t.segments if s.step > after_step] for t in transcripts]
    count = min(len(p) for p in parts)
    for numbers in zip(*[[s.round for s in p[:count]] for p in parts], strict=True):
        if len(set(numbers)) > 1:
            raise CheckpointError(f"islands say that they committed the exchanges {numbers} together: no run does that")
    found: Rounds = []
    for i in range(count):
        entries = [e for p in parts for e in p[i].entries if e.step > after_step]
        found.append(sorted(entries, key=lambda e: (e.step, e.kind == COMMIT, e.island)))
    return found


def compare(ours: Rounds, theirs: Rounds) -> tuple[Difference | None, int]:
    """The first entry that differs, None if none does as far as both go, and how many pairs of hashes were compared.

    Raises CheckpointError where the two have not done the same steps.
    """
    count = min(len(ours), len(theirs))
    for mine, other in zip(ours[:count], theirs[:count], strict=True):
        for a, b in zip(mine, other, strict=False):
            if len(mine) != len(other) or (a.step, a.kind, a.island) != (b.step, b.kind, b.island):
                raise CheckpointError(
                    f"around inner step {a.step} of island {a.island} the two have not done the same steps"
                )
    found, compared = first_break(_chain(ours[:count]), _chain(theirs[:count]))
    if found is None:
        return None, compared
    index, more = first_difference([e.leaf for e in ours[found]], [e.leaf for e in theirs[found]])
    assert index is not None
    return Difference(round=found, ours=ours[found][index], theirs=theirs[found][index]), compared + more


def _chain(rounds: Rounds) -> list[bytes]:
    chain: list[bytes] = []
    for entries in rounds:
        chain.append(link(chain[-1] if chain else b"", root_of([e.leaf for e in entries])))
    return chain
