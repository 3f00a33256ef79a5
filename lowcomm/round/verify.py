"""Checks around every sync: the model is still covered, the islands still agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowcomm.round.digest import digest
from lowcomm.round.fragment import Fragment
from lowcomm.round.replica import Replica
from lowcomm.transport.base import Transport
from lowcomm.types import CoverageError, DivergenceError, Round, SyncError


def check_still_covered(replicas: Sequence[Replica]) -> None:
    """Raise CoverageError if a parameter was unfrozen, frozen or replaced, or a foreign one given to the optimizer."""
    for replica in replicas:
        now = {name: id(p) for name, p in replica.model.named_parameters() if p.requires_grad}
        then = {name: id(p) for name, p in replica.params.items()}
        if now != then:
            changed = sorted(set(now.items()) ^ set(then.items()))[0][0]
            raise CoverageError(
                f"parameter {changed} was frozen, unfrozen or replaced since the sync was set up: build a new LocalSGD"
            )
        replica.part.check_inner(list(replica.model.parameters()), replica.inner)


def verify_all(transport: Transport, fragments: Sequence[Fragment], landed: dict[int, tuple[bytes, Round]]) -> None:
    """`verify_equal` for fragments that landed (digest and round by number)."""
    for index, (value, then) in landed.items():
        verify_equal(transport, fragments[index], [value] * len(transport.local), then)


def verify_equal(transport: Transport, fragment: Fragment, digests: Sequence[bytes], round: Round) -> None:
    """Compare the islands' global weights (16 bytes each); DivergenceError names the first tensor that differs."""
    try:
        rows = [torch.frombuffer(bytearray(d), dtype=torch.uint8) for d in digests]
        came = transport.gather_present(rows) if transport.goes_on else list(transport.gather(rows))
    except SyncError as error:
        cause = str(error).partition(". Nothing was committed")[0]
        raise SyncError(
            f"round {round.index} was committed here, but its weights could not be compared with the other islands': "
            f"they may have discarded it. Resume from the last checkpoint unless the next sync succeeds. ({cause})"
        ) from error
    there = [k for k, row in enumerate(came) if row is not None]
    heard = [row for row in came if row is not None]
    if all(torch.equal(row, heard[0]) for row in heard):
        return
    parts = [digest(view) for view in fragment.views(fragment.weights).values()]
    own = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
    table = transport.gather([own] * len(transport.local)).view(transport.islands, -1, 16)
    for index, name in enumerate(fragment.names):
        differing = [i for i in there if bool((table[i, index] != table[there[0], index]).any())]
        if differing:
            raise DivergenceError(
                f"after round {round.index} (step {round.step}) the global weights differ: {name} on islands "
                f"{differing} is not what island {there[0]} has. The run stops; resume from the last checkpoint."
            )
    raise DivergenceError(f"after round {round.index} the digests of the global weights differ but no tensor does")
