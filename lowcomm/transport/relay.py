"""The server's half of the relayed transport: collects what every island posts, and makes each island's answer.

An exchange is complete when all islands have posted it. One among those present goes on without islands that are lost,
but with what they had posted of it: all others hear the same. Sums are added here in island order, by the code that the
other transports use, so that the bits are the same; everything else is handed on as it came. The relay sees payloads,
as every other island does; it holds one exchange of all islands at a time, and those that islands run ahead with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowcomm.transport.base import BLOCK, ordered_sum
from lowcomm.types import TransportError

KINDS = ("sum", "gather", "swap", "broadcast")


class IslandError(TransportError):
    """What one island sent can't be used, whatever the others do."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an island posts: number `number` in the order of its exchanges, equal on all islands."""

    number: int
    kind: str
    """One of KINDS."""
    rows: tuple[Tensor, ...]
    """uint8, 1-D, on the CPU. sum: the bytes of the fp32 vector, none if its weight is 0; gather: one row; swap: one
    for each other island; broadcast: one from island 0, none from the others."""
    weights: tuple[float, ...] = ()
    """Of all islands, for a sum."""
    present: bool = False
    """Of a gather or a swap: whether it goes on without islands that are lost."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an island gets back. sum: one row; gather, swap: one row of each other island that had posted it, in order;
    broadcast: one."""

    number: int
    rows: tuple[Tensor, ...]
    lost: Mapping[int, str] = field(default_factory=dict)
    """Islands that were lost before they had posted it, with the cause."""


class Relay:
    """Exchanges of one run. Raises TransportError where islands do not do the same things in the same order."""

    def __init__(self, islands: int) -> None:
        self.islands = islands
        self.lost: dict[int, str] = {}
        self.goes_on = False
        """Whether all islands have said, by an exchange among those present, that the run survives a loss."""
        self._open: dict[int, dict[int, Request]] = {}
        self._next = [0] * islands
        self._scratch = torch.empty(BLOCK)

    def offer(self, island: int, request: Request) -> dict[int, Answer]:
        """Take an island's request; the answers of all islands if it was the last one missing, else nothing.

        Raises IslandError for what it should not have sent, and takes nothing then.
        """
        if island in self.lost:
            raise IslandError(f"island {island} is lost ({self.lost[island]}) and may not come back")
        if request.number != self._next[island]:
            raise IslandError(
                f"island {island} posted exchange {request.number}, its next is {self._next[island]}: replayed or lost"
            )
        _check(request, island, self.islands)
        self._next[island] += 1
        posted = self._open.setdefault(request.number, {})
        posted[island] = request
        other = next(iter(posted))
        if _form(posted[other]) != _form(request):
            raise TransportError(
                f"islands {other} and {island} disagree on exchange {request.number}: {_form(posted[other])} against "
                f"{_form(request)}. Start all with the same code, recipe and model"
            )
        return {} if self._missing(request.number) else self._close(request.number)

    def lose(self, island: int, cause: str) -> list[dict[int, Answer]]:
        """Go on without an island: the answers of the exchanges for which it was the last one missing, in order."""
        self.lost[island] = cause
        return [self._close(number) for number in sorted(self._open) if not self._missing(number)]

    def waits_for(self) -> tuple[int, int] | None:
        """An exchange that needs a lost island, and that island."""
        for number, posted in self._open.items():
            gone = [k for k in self.lost if k not in posted]
            if gone and not _any(posted).present:
                return number, gone[0]
        return None

    def _missing(self, number: int) -> list[int]:
        posted = self._open[number]
        excused = self.lost if _any(posted).present else {}
        return [k for k in range(self.islands) if k not in posted and k not in excused]

    def _close(self, number: int) -> dict[int, Answer]:
        posted = self._open.pop(number)
        lost = {k: cause for k, cause in self.lost.items() if k not in posted}
        first = _any(posted)
        self.goes_on |= first.present
        rows = self._combine(first.kind, posted)
        there = [k for k in range(self.islands) if k not in self.lost]
        return {k: Answer(number=number, rows=rows[k], lost=lost) for k in there}

    def missing(self) -> dict[int, list[int]]:
        """Exchange number -> islands that have not posted it, of exchanges that some island waits for."""
        return {number: self._missing(number) for number in self._open}

    def _combine(self, kind: str, posted: Mapping[int, Request]) -> Mapping[int, tuple[Tensor, ...]]:
        everyone = sorted(posted)
        if kind == "sum":
            total = self._sum([posted[k] for k in everyone])
            return dict.fromkeys(everyone, (total,))
        if kind == "gather":
            return {k: tuple(posted[j].rows[0] for j in everyone if j != k) for k in everyone}
        if kind == "swap":
            return {k: tuple(posted[j].rows[k - (k > j)] for j in everyone if j != k) for k in everyone}
        return {k: posted[0].rows if k else () for k in everyone}

    def _sum(self, requests: Sequence[Request]) -> Tensor:
        weights = requests[0].weights
        vectors = [_vector(r.rows[0]) if w else torch.empty(0) for r, w in zip(requests, weights, strict=True)]
        used = [v for v, w in zip(vectors, weights, strict=True) if w]
        if not used or any(v.numel() != used[0].numel() for v in used):
            raise TransportError(f"vectors of {[v.numel() for v in used]} elements can't be summed")
        out = torch.empty_like(used[0])
        ordered_sum(vectors, weights, out, self._scratch)
        return out.view(torch.uint8)


def _check(request: Request, island: int, islands: int) -> None:
    """What an island sends is not trusted to be what `Relayed` sends."""
    wanted = {"sum": 1, "gather": 1, "swap": islands - 1, "broadcast": int(island == 0)}.get(request.kind)
    if len(request.rows) != wanted:
        raise IslandError(f"island {island} sent {len(request.rows)} rows for a {request.kind}, {wanted} are due")
    if len(request.weights) != (islands if request.kind == "sum" else 0):
        raise IslandError(f"island {island} sent {len(request.weights)} weights for a {request.kind}")
    if request.present and request.kind not in ("gather", "swap"):
        raise IslandError(f"island {island} wants a {request.kind} among those present, which needs all islands")


def _vector(row: Tensor) -> Tensor:
    if row.numel() % 4:
        raise TransportError(f"{row.numel()} bytes are no fp32 vector")
    return (row.clone() if row.storage_offset() % 4 else row).view(torch.float32)


def _any(posted: Mapping[int, Request]) -> Request:
    return next(iter(posted.values()))


def _form(request: Request) -> str:
    what = f"{request.kind} {list(request.weights)}" if request.weights else request.kind
    return f"{what} among those present" if request.present else what
