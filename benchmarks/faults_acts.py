"""What happens to one island in the middle of a run of benchmarks/faults.py.

FAULT in the environment says it: KIND ISLAND ROUND. The recipe is loaded in every process; the island that is meant
prepares its own fault, and writes when it happened to the file FAULT_AT.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lowcomm.data.shard import Shard
from lowcomm.exchange.lockstep import Lockstep
from lowcomm.island import PlainIsland
from lowcomm.state.anchor import Anchor
from lowcomm.transport import pipelined
from lowcomm.transport.collective import Collective

EVERY, ROUNDS = 8, 16
"""Inner steps of a round, and rounds of a run."""


def install() -> None:
    """Prepare this process's fault, if one is meant."""
    kind, island, number = os.environ.get("FAULT", "none 0 0").split()
    if kind != "none" and os.environ.get("RANK") == island:
        FAULTS[kind](int(number))


def _note() -> None:
    path = Path(os.environ["FAULT_AT"])
    if not path.exists():
        path.write_text(str(time.monotonic()), encoding="utf-8")


def _die() -> None:
    _note()
    os.kill(os.getpid(), signal.SIGKILL)


def _in_round(number: int, action: Callable[[], object]) -> None:
    """Do it when the exchange of a round begins, before its roll call."""
    exchange = Lockstep._exchange

    def patched(self: Lockstep, out: Any, pending: Any) -> Any:
        if out.round.index == number:
            action()
        return exchange(self, out, pending)

    Lockstep._exchange = patched


def kill_in_step(number: int) -> None:
    """In an inner step of the round, not its first."""
    _at_step(number * EVERY + EVERY // 2, lambda _, loss: (_die(), loss)[1])


def kill_at_start(number: int) -> None:
    """Before the roll call."""
    _in_round(number, _die)


def kill_in_exchange(number: int) -> None:
    """When some of its messages have been sent and others have not: it adds up, or its third swap begins."""
    sums, swap, calls = pipelined.ordered_sum, Collective._start, [0]

    def adding(*arguments: Any) -> None:
        sums(*arguments)
        if calls[0]:
            _die()

    def starting(self: Collective, what: str, *arguments: Any) -> Any:
        started = swap(self, what, *arguments)
        if calls[0] > 1:
            _die()
        return started

    gather = Collective.gather

    def gathering(self: Collective, rows: Any) -> Any:
        calls[0] += calls[0] > 0
        if calls[0] == 3:  # the roll call was the first
            _die()
        return gather(self, rows)

    setattr(Collective, "gather", gathering)  # noqa: B010
    pipelined.ordered_sum = adding
    setattr(Collective, "_start", starting)  # noqa: B010
    _in_round(number, lambda: calls.__setitem__(0, 1))


def kill_after_apply(number: int) -> None:
    """When it has written the new weights, before they are compared."""
    write, calls = Anchor.write, [0]

    def writing(self: Anchor, *arguments: Any) -> Any:
        written = write(self, *arguments)
        if calls[0]:
            _die()
        return written

    setattr(Anchor, "write", writing)  # noqa: B010
    _in_round(number, lambda: calls.__setitem__(0, 1))


def _at_step(step: int, change: Callable[[PlainIsland, float], float]) -> None:
    backward, calls = PlainIsland.backward, [0]

    def patched(self: PlainIsland, batches: Any) -> float:
        loss = backward(self, batches)
        calls[0] += 1
        if calls[0] == step:
            _note()
            return change(self, loss)
        return loss

    PlainIsland.backward = patched


def nan_loss(number: int) -> None:
    """The loss of one inner step."""
    _at_step(number * EVERY + 3, lambda _, loss: math.nan)


def nan_gradients(number: int) -> None:
    """The gradients of one inner step."""

    def change(island: PlainIsland, loss: float) -> float:
        for p in island.model.parameters():
            if p.grad is not None:
                p.grad.fill_(math.nan)
        return loss

    _at_step(number * EVERY + 3, change)


def nan_weights(number: int) -> None:
    """One weight."""
    _at_step(number * EVERY + 3, lambda island, loss: (_scale(island, math.nan), loss)[1])


def blow_up(number: int) -> None:
    """All weights a million times larger."""
    _at_step(number * EVERY + EVERY, lambda island, loss: (_scale(island, 1e6), loss)[1])


@torch.no_grad()
def _scale(island: PlainIsland, factor: float) -> None:
    for p in island.model.parameters():
        p.mul_(factor)


def flip_contribution(number: int) -> None:
    """A bit of what one other island gets, after its checksum was made."""
    send, calls = dist.isend, [0]

    def sending(tensor: torch.Tensor, group: Any, group_dst: int, tag: int = 0) -> Any:
        if calls[0] and tag == pipelined.CONTRIBUTION:
            calls[0] = 0
            _note()
            tensor = tensor.clone()
            tensor.view(torch.int32)[5] ^= 1 << 12
            _KEPT.append(tensor)
        return send(tensor, group=group, group_dst=group_dst, tag=tag)

    setattr(dist, "isend", sending)  # noqa: B010
    _in_round(number, lambda: calls.__setitem__(0, 1))


_KEPT: list[torch.Tensor] = []


def flip_result(number: int) -> None:
    """A bit of the mean as one island has it."""
    sums, calls = Collective.weighted_sum, [0]

    def summing(self: Collective, vectors: Any, weights: Any, out: torch.Tensor) -> Any:
        found = sums(self, vectors, weights, out)
        if calls[0]:
            calls[0] = 0
            _note()
            out.view(torch.int32)[5] ^= 1 << 12
        return found

    Collective.weighted_sum = summing
    _in_round(number, lambda: calls.__setitem__(0, 1))


def stream_breaks(number: int) -> None:
    """The text can't be read any more."""
    from lowcomm.types import DataError

    prepare, calls = Shard.prepare, [0]

    def failing(self: Shard, batches: int) -> None:
        calls[0] += 1
        if calls[0] == number * EVERY + 3:
            _note()
            raise DataError("train.jsonl, row 251: the connection was lost")
        prepare(self, batches)

    Shard.prepare = failing


def freeze(number: int) -> None:
    """SIGSTOP, when an exchange begins."""

    def stop() -> None:
        _note()
        os.kill(os.getpid(), signal.SIGSTOP)

    _in_round(number, stop)


def unequal_batches(number: int) -> None:
    """Its text ends three inner steps before that of the others, in the middle of a round."""
    from lowcomm.trainer import Loop

    def ends(self: Loop) -> bool:
        over = self.run.sync.step == EVERY * ROUNDS - 3
        if over:
            _note()
        return over

    Loop.budget_is_spent = ends


def disk_full(number: int) -> None:
    """No file of a checkpoint can be written from this round on (ENOSPC, as a full disk answers)."""
    from lowcomm import checkpoint

    def failing(*_: Any) -> None:
        _note()
        raise OSError(28, "No space left on device")

    _in_round(number, lambda: setattr(checkpoint, "save_file", failing))


FAULTS: dict[str, Callable[[int], None]] = {
    f.__name__: f
    for f in (
        *(kill_in_step, kill_at_start, kill_in_exchange, kill_after_apply, nan_loss, nan_gradients, nan_weights),
        *(blow_up, flip_contribution, flip_result, stream_breaks, unequal_batches, disk_full, freeze),
    )
}
