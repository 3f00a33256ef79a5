"""The audit: random rounds of a run are computed again from its checkpoints, and every hash of them is compared.

A round that was computed wrongly is found if it, or one between it and the checkpoint before, is among those drawn;
checkpoints are held against the hashes of the exchange that they follow. Whoever is audited must not know the rounds
beforehand: they are drawn from the system's randomness unless a seed is given.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence

from lowcomm.run.score_book import NAME, first_broken
from lowcomm.types import ConfigError
from lowcomm.verification.compare import compare, rounds_of
from lowcomm.verification.operators import Operators, write
from lowcomm.verification.rerun import Recorded, check_kind, rerun

FITS, DIFFERS = 0, 1
Say = Callable[[str], None]


def audit(run: Recorded, rounds: int, seed: int | None, say: Say) -> int:
    """0: all hashes agree; 1: the first entry that does not is named."""
    check_kind(run)
    count = min(len(t.segments) for t in run.transcripts)
    if not 1 <= rounds <= count:
        raise ConfigError(
            f"rounds = {rounds} is not allowed: 1 to {count}, which the run has committed. Fix: pass --rounds {count}"
        )
    if (broken := first_broken(run.directory)) is not None:
        say(f"{run.directory / NAME}, line {broken}: it does not follow from those before it, somebody changed one")
        return DIFFERS
    drawn = random.Random(secrets.randbits(64) if seed is None else seed).sample(range(count), rounds)
    starts = run.starts()
    groups: dict[int, list[int]] = {}
    for index in sorted(drawn):
        before = run.transcripts[0].segments[index - 1].step if index else run.transcripts[0].start.step
        groups.setdefault(max((s for s in starts if s <= before), default=0), []).append(index)
    for step, indices in groups.items():
        if _differs(run, step, starts.get(step), indices, say):
            return DIFFERS
    say(f"{rounds} of {count} rounds were computed again: all hashes agree")
    return FITS


def _differs(run: Recorded, step: int, name: str | None, indices: Sequence[int], say: Say) -> bool:
    """Compute again from one beginning what is needed for some rounds; whether anything differs."""
    recorded = run.transcripts
    if recorded[0].start.step > step:
        where = f"inner step {recorded[0].start.step}"
        raise ConfigError(f"hashes begin at {where}, and no checkpoint of then or later is before round {indices[0]}")
    where = "the start" if name is None else f"checkpoint {name}"
    last = recorded[0].segments[indices[-1]]
    made = rerun(run, name, last.step)
    for ours, theirs in zip(recorded, made, strict=True):
        if ours.at(step) != theirs.start.leaf:
            say(f"{where}: it is not the state that island {ours.island} had after inner step {step}")
            return True
    said = rounds_of(recorded, step)[: len(rounds_of(made, step))]
    found, compared = compare(said, rounds_of(made, step))
    names = ", ".join(str(recorded[0].segments[i].round) for i in indices)
    if found is None:
        say(f"rounds {names}, from {where}: the same bits ({len(said)} rounds computed, {compared} hashes compared)")
        return False
    say(
        f"{found} is the first that differs: the run has {found.ours.leaf.hex()[:16]}, this machine "
        f"{found.theirs.leaf.hex()[:16]} ({len(said)} rounds computed from {where}, {compared} hashes compared)"
    )
    return True


def write_operators(run: Recorded, island: int, step: int, say: Say) -> int:
    """Compute up to one step again and write the hashes of its operators into the run directory."""
    check_kind(run)
    last = run.transcripts[0].segments[-1].step if run.transcripts[0].segments else 0
    if not 0 <= island < run.islands:
        raise ConfigError(f"island = {island} is not allowed: 0 to {run.islands - 1}. Fix: pass --island 0")
    if not 1 <= step <= last:
        raise ConfigError(f"operators = {step} is not allowed: 1 to {last}, inner steps of the run. Fix: name one")
    starts = run.starts()
    begin = max((s for s in starts if s < step), default=0)
    watched = Operators(island, step)
    rerun(run, starts.get(begin), step, watched)
    say(f"{len(watched.seen)} operators of island {island}, inner step {step}: {write(run.directory, watched)}")
    return FITS
