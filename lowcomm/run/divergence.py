"""A training loss that is NaN or infinite: its island rests until the sync, or the run ends."""

from __future__ import annotations

from lowcomm.run.assembly import Run
from lowcomm.run.journal import Journal
from lowcomm.types import LowcommError


class DivergedError(LowcommError):
    """The training loss is NaN or infinite, and too few islands are left to go on."""


def set_aside(run: Run, journal: Journal, local: int, loss: float, average: bool) -> bool:
    """Set a local island aside, and say so; False for an island of several ranks, which train on.

    These end in weights that are not finite, which the next roll call sees. average: gradients are averaged, so that
    all islands are hit. Raises DivergedError where a quorum can't be left, as far as this process knows.
    """
    sync, number = run.sync, run.sync.transport.local[local]
    islands, step = sync.transport.islands, sync.step + 1
    what = f"the loss of island {number} is {loss} at inner step {step}"
    left = islands - sum(bool(r.unusable) for r in sync.replicas) - 1
    if average or left < max(1.0, sync.spec.quorum * islands):
        raise DivergedError(
            f"{what}: the run stops. Fix: start a new run, with another --run-dir and a lower learning rate of the "
            "inner optimizer"
        )
    note = f"{what}: it rests until the next sync and goes on from the global weights"
    run.progress.warn(f"diverged {number} {step}", f"warning: {note}")
    journal.note(note)
    if run.members.mesh is not None:
        return False
    sync.set_aside(local)
    return True
