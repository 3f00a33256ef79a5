"""The referee between two runs that should be equal: finds where they part, computes that step itself, names the liar.

Arun et al., Verde: verification via refereed delegation for machine learning programs, 2025, arXiv 2502.19405.

Both have committed to a chain of Merkle roots. Bisection over rounds, then down the tree of one, needs a logarithm of
the number of steps in messages; whoever is then contradicted by the referee's own computation, from a state that both
agree on, has lied. If both runs have the hashes of that step's operators, the first one that differs is named too.
Deviates: the referee computes from the last checkpoint that both agree on to the step, where the paper's is handed the
state before it and one operator's inputs: run directories keep checkpoints, not every state.
Raises: ConfigError (exit 2) for runs of unlike settings or kinds of device. Reduces to: hashes only, without a dispute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lowcomm.config_file import MAY_CHANGE, to_dict
from lowcomm.types import ConfigError
from lowcomm.verification import operators
from lowcomm.verification.compare import Difference, compare, rounds_of
from lowcomm.verification.operators import Operator, Operators
from lowcomm.verification.rerun import Recorded, check_kind, rerun
from lowcomm.verification.transcript import COMMIT, Entry, Transcript

FITS, DIFFERS = 0, 1
Say = Callable[[str], None]


def referee(a: Recorded, b: Recorded, say: Say) -> int:
    """0: both say the same; 1: they do not, and whoever this machine contradicts is named."""
    _check_settings(a, b)
    check_kind(a, b)
    ours, theirs = rounds_of(a.transcripts), rounds_of(b.transcripts)
    begins = [(x.start.step, x.start.leaf) == (y.start.step, y.start.leaf) for x, y in _pairs(a, b)]
    if not all(begins):
        raise ConfigError(
            f"{a.directory} and {b.directory} do not begin with the same state. Fix: compare runs of one seed and text"
        )
    found, compared = compare(ours, theirs)
    if found is None:
        say(f"{min(len(ours), len(theirs))} rounds: both say the same ({compared} hashes compared)")
        return FITS
    say(f"{found} is the first that differs ({compared} hashes compared)")
    watched = None if found.ours.kind == COMMIT else Operators(found.ours.island, found.ours.step)
    made = _from_agreed(a, b, found, watched, say)
    own = _own_entry(made, a.transcripts, found.ours)
    if own is None:
        say("this machine does not agree with what both say of the steps before: it can't judge")
        return DIFFERS
    liars = [run.directory for run, e in ((a, found.ours), (b, found.theirs)) if e.leaf != own.leaf]
    say(f"this machine has {own.leaf.hex()[:16]}: wrong is {' and '.join(map(str, liars))}")
    if watched is not None:
        _name_operator(a, b, watched, say)
    return DIFFERS


def _pairs(a: Recorded, b: Recorded) -> list[tuple[Transcript, Transcript]]:
    return list(zip(a.transcripts, b.transcripts, strict=True))


def _check_settings(a: Recorded, b: Recorded) -> None:
    tables: list[dict[str, Any]] = [to_dict(replace(r.config, name="run")) for r in (a, b)]
    for key in tables[0]:
        if key not in MAY_CHANGE and tables[0][key] != tables[1][key]:
            raise ConfigError(
                f"{key} of {a.directory} and {b.directory} differs: they are not runs of one specification. "
                "Fix: compare two runs of the same recipe, flags and seed"
            )
    if (a.threads, b.threads) != (a.threads, a.threads):
        raise ConfigError(
            f"threads of {a.directory} are {a.threads}, of {b.directory} {b.threads}: their bits need not agree where "
            "both are honest. Fix: train with --threads 1 in both"
        )


def _from_agreed(a: Recorded, b: Recorded, found: Difference, watched: Operators | None, say: Say) -> list[Transcript]:
    """This machine's transcripts up to the step in dispute, from the last checkpoint that both agree on."""
    step = found.ours.step
    choices = sorted(
        {(s, i, name) for i, run in enumerate((a, b)) for s, name in run.starts().items() if s < step}, reverse=True
    )
    for start, i, name in choices:
        run = (a, b)[i]
        made = rerun(run, name, step, watched)
        if all(t.start.leaf == x.at(start) == y.at(start) for t, (x, y) in zip(made, _pairs(a, b), strict=True)):
            say(f"computed again from checkpoint {name} of {run.directory}, which both agree on")
            return made
        say(f"checkpoint {name} of {run.directory} is not the state that both agree on: it is passed over")
        if watched is not None:
            watched.seen.clear()
    say("computed again from the start")
    return rerun(a, None, step, watched)


def _own_entry(made: Sequence[Transcript], said: Sequence[Transcript], wanted: Entry) -> Entry | None:
    """This machine's entry for a step; None where it contradicts what was said of a step before, by both."""
    own: Entry | None = None
    for mine, theirs in zip(made, said, strict=True):
        table = {(e.kind, e.step): e.leaf for e in _entries(theirs)}
        for e in _entries(mine):
            if (e.kind, e.step, e.island) == (wanted.kind, wanted.step, wanted.island):
                own = e
            elif _before(e, wanted) and table.get((e.kind, e.step)) != e.leaf:
                return None
    return own


def _entries(transcript: Transcript) -> list[Entry]:
    return [e for s in transcript.segments for e in s.entries] + list(transcript.open)


def _before(one: Entry, other: Entry) -> bool:
    return (one.step, one.kind == COMMIT) < (other.step, other.kind == COMMIT)


def _name_operator(a: Recorded, b: Recorded, own: Operators, say: Say) -> None:
    """The first operator in which the two differ, if both have written them down."""
    held = [operators.read(run.directory, own.island, own.step) for run in (a, b)]
    missing = [str(run.directory) for run, rows in zip((a, b), held, strict=True) if rows is None]
    if missing:
        command = f"lowcomm audit RUN --operators {own.step} --island {own.island}"
        say(f"to find the operator, run `{command}` where {' and '.join(missing)} was trained")
        return
    first, second = held
    assert first is not None and second is not None
    index, compared = operators.first_differing(first, second)
    if index is None:
        say(f"all {len(first)} operators agree: the state was changed outside of them ({compared} hashes compared)")
        return
    wrong = [str(run.directory) for run, rows in ((a, first), (b, second)) if _at(rows, index) != _at(own.seen, index)]
    name = next(rows[index].name for rows in (first, second, own.seen) if index < len(rows))
    told = f"operator {index}, {name}, is the first that differs ({compared} hashes compared)"
    say(f"{told}: wrong is {' and '.join(wrong)}")


def _at(rows: list[Operator], index: int) -> Operator | None:
    return rows[index] if index < len(rows) else None
