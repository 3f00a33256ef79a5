"""Exchanges of real processes that go on without islands that die or fall silent: plain sums, packed and gathered rows.

gloo tears the buffer of a failed exchange and leaves the group unusable. So whoever finds it broken severs it, the
living agree on who goes on (`regroup`), make a group of their own, and try the transaction again: nothing of it was
committed. One that ends in a gather succeeds on all or on none: who has it knows that all others had sent what they
had to, so that they have everything but the last rows, which they then get by the board.
Islands keep their numbers; zeros stand for the rows of the lost. Costs no byte while nobody is lost, but one per island
for a transaction that does not end in a gather.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lowcomm.transport.base import BLOCK, KEPT, MOST_BYTES, Altered, Arrival, Transport, ordered_sum
from lowcomm.transport.collective import Collective
from lowcomm.transport.heartbeat import Heartbeat
from lowcomm.transport.links import gloo_group, sever, sockets
from lowcomm.transport.regroup import Epoch, Standing, agree, broken, check_member, furthest, names
from lowcomm.transport.simulated import Simulated
from lowcomm.types import FencedError, LostError, TransportError

Result = TypeVar("Result")
MOST_IDLE = 3
"""Times in a row that a group may break without anybody being lost."""


class Regrouping(Transport):
    """One island per process, over a `Collective` that is made anew when islands are lost."""

    def __init__(
        self,
        inner: Collective,
        heartbeat: Heartbeat,
        connections: frozenset[str],
        *,
        timeout_s: float,
        streams: int,
        spared: Sequence[int] = (),
        joined: Callable[[Epoch], None] = lambda _: None,
    ) -> None:
        """connections: sockets of the first group. spared: ports that are not of groups. timeout_s: longest silence.

        joined: called when a new group is there; what it raises ends the run.
        """
        self.islands, self.local = inner.islands, inner.local
        self.sent_bytes, self.received_bytes = inner.sent_bytes, inner.received_bytes
        self.lost: Mapping[int, str] = {}
        self.epoch = Epoch(number=0, members=tuple(range(inner.islands)))
        self.survives = False
        """Whether islands may be lost: set when all have begun, before that a failure ends the run."""
        self._inner: Transport = inner
        self._first = inner
        self._heartbeat, self._connections, self._spared = heartbeat, connections, spared
        self._timeout_s, self._streams, self._joined = timeout_s, streams, joined
        self._closed, self._idle = 0, 0
        self._table: Tensor | None = None
        """What the last operation of the transaction brought, if it is a gather."""
        self._last_table: Tensor | None = None
        """That of the last one that was closed."""
        self._open, self._operations = False, 0
        heartbeat.looks.append(self._look)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._open or not self.survives:
            yield
            return
        self._open, self._operations, self._table = True, 0, None
        try:
            yield
            if self._operations and self._table is None:
                self._confirm()
        except LostError:
            self._operations = 0
            raise
        finally:
            self._open = False
            if self._operations:
                self._closed, self._last_table = self._closed + 1, self._table

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        (vector,), members = vectors, self.epoch.members
        kept = [weights[k] for k in members]
        head = out.numel() // len(members) * len(members)  # padded for all islands, not for those that are left
        tail = vector[head:].clone()
        (found,) = self._do(lambda: self._inner.weighted_sum([vector[:head]], kept, out[:head]))
        if tail.numel():
            rows = self._do(lambda: self._inner.gather([tail]))
            ordered_sum(list(rows), kept, out[head:], torch.empty(min(BLOCK, tail.numel()), device=out.device))
        return [{members[k]: why for k, why in found.items()}]

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        if self._open or not self.survives:
            return self._gather(rows)
        while True:
            try:
                with self.transaction():
                    return self._gather(rows)
            except LostError:
                continue  # alone it may be tried again as it is

    def gather_sized(self, rows: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> list[Tensor]:
        came = self._do(lambda: self._inner.gather_sized(rows, most_bytes))
        return self._spread(came, rows[0][:0])

    def start_swap(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        (sends,), (expected,), members = rows, sizes, self.epoch.members
        wait = self._do(lambda: self._inner.start_swap([[sends[k] for k in members]], [[expected[k] for k in members]]))

        def result() -> list[list[Tensor]]:
            (came,) = self._do(wait)
            return [self._spread(came, sends[self.local[0]][:0])]

        return result

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """From the first island that is left."""
        self._do(lambda: self._inner.broadcast(tensors))

    def close(self) -> None:
        self._first.close()

    def _gather(self, rows: Sequence[Tensor]) -> Tensor:
        table = self._do(lambda: self._inner.gather(rows), closes=rows[0])
        out = torch.zeros(self.islands, rows[0].numel(), dtype=rows[0].dtype, device=rows[0].device)
        if len(table) == self.islands:  # nobody was lost before it
            out = table
        else:
            out[list(self.epoch.members)] = table
        self._table = out
        return out

    def _spread(self, came: Sequence[Tensor], empty: Tensor) -> list[Tensor]:
        there = dict(zip(self.epoch.members, came, strict=True))
        return [there.get(k, empty) for k in range(self.islands)]

    def _confirm(self) -> None:
        """A gather at the end of a transaction that has none. Its bytes are not counted: other transports have none."""
        counted = list(self.sent_bytes), list(self.received_bytes)
        try:
            self._gather([torch.ones(1, dtype=torch.uint8)])
        finally:
            self.sent_bytes[:], self.received_bytes[:] = counted

    def _do(self, operation: Callable[[], Result], closes: Tensor | None = None) -> Result:
        """Run an operation of the group; closes: this island's row, of a gather that may have ended a transaction."""
        if self.fenced is not None:
            raise self.fenced
        self._operations += 1
        if closes is None:
            self._table = None
        try:
            result = operation()
        except TransportError as error:
            if not (self.survives and self._open):
                raise
            return self._go_on(error, closes)  # pyright: ignore[reportReturnType]
        self.link_bytes_per_s = self._inner.link_bytes_per_s
        self._idle = 0
        return result

    def _go_on(self, error: TransportError, closes: Tensor | None) -> Tensor:
        """Make a group of those who are left; the table of the gather in which that was needed, if others have it.

        Raises LostError where nobody has: the transaction is to be tried again. TransportError where the run can't go
        on, FencedError where it goes on without this island.
        """
        own = Standing(closed=self._closed, table=None if self._last_table is None else _text(self._last_table))
        try:
            standings = self._regroup(own)
        except OSError as failure:
            raise TransportError(f"{error} And {failure}.") from error
        except FencedError as fenced:
            self.fenced = fenced
            raise
        top = furthest(standings)
        if top.closed > self._closed and top.table is not None and closes is not None:
            return _table(top.table, closes)
        raise LostError(f"{names(sorted(self.lost)) if self.lost else 'nobody'} is gone: {error}") from error

    def _regroup(self, own: Standing) -> dict[int, Standing]:
        """Agree and connect until a group is there: members may die meanwhile, too."""
        while True:
            sever(self._connections, self._spared)
            before = self.epoch
            self.epoch, standings, lost = agree(self._heartbeat, before, own, self._timeout_s)
            self.lost = {**self.lost, **lost}
            self._idle = 0 if lost else self._idle + 1
            if self._idle > MOST_IDLE:
                raise TransportError(f"the group broke {MOST_IDLE} times though nobody is gone. {KEPT}")
            try:
                self._connect()
            except RuntimeError:
                continue
            return standings

    def _connect(self) -> None:
        members, (me,) = self.epoch.members, self.local
        there = sockets()
        if len(members) == 1:
            self._inner = Simulated(1)
        else:
            store, rank = self._heartbeat.board.meeting(self.epoch.number), members.index(me)
            stores = [dist.PrefixStore(str(i), store) for i in range(self._streams)]
            lanes = [gloo_group(each, rank, len(members), self._timeout_s) for each in stores]
            self._inner = Collective.of_lanes(lanes)
        self._inner.sent_bytes, self._inner.received_bytes = self.sent_bytes, self.received_bytes
        self._connections = sockets() - there
        self._joined(self.epoch)

    def _look(self) -> None:
        """In the heartbeat's thread: free this process from a group that others have found broken, or that hangs."""
        if not self.survives or self.fenced is not None:
            return
        epoch, connections = self.epoch, self._connections
        try:
            check_member(self._heartbeat, epoch)
        except FencedError as fenced:
            self.fenced = fenced
        others = [k for k in epoch.members if k != self.local[0]]
        hangs = any(self._heartbeat.peers[k].condition == "silent" for k in others) and any(
            self._heartbeat.silent_s(k) > self._timeout_s for k in others
        )
        if self.epoch is epoch and (self.fenced is not None or hangs or broken(self._heartbeat, epoch)):
            sever(connections, self._spared)


def _text(table: Tensor) -> str:
    return base64.b64encode(table.cpu().contiguous().view(torch.uint8).numpy().tobytes()).decode()


def _table(text: str, row: Tensor) -> Tensor:
    """The rows of all islands, of the size and dtype of this one."""
    data = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
    return data.view(row.dtype).view(-1, row.numel())
