"""The server's half of the relayed transport: collects what every island posts, and makes each island's answer.

An exchange is complete when all islands have posted it. Sums are added here in island order, by the code that the
other transports use, so that the bits are the same; everything else is handed on as it came. The relay sees payloads,
as every other island does; it holds one exchange of all islands at a time, and those that islands run ahead with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.transport.base import BLOCK, ordered_sum
from lowcomm.types import TransportError

KINDS = ("sum", "gather", "swap", "broadcast")


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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an island gets back. sum: one row; gather, swap: one row of each other island, in order; broadcast: one."""

    number: int
    rows: tuple[Tensor, ...]


class Relay:
    """Exchanges of one run. Raises TransportError where islands do not do the same things in the same order."""

    def __init__(self, islands: int) -> None:
        self.islands = islands
        self._open: dict[int, dict[int, Request]] = {}
        self._next = [0] * islands
        self._scratch = torch.empty(BLOCK)

    def offer(self, island: int, request: Request) -> dict[int, Answer]:
        """Take an island's request; the answers of all islands if it was the last one missing, else nothing."""
        if request.number != self._next[island]:
            raise TransportError(
                f"island {island} posted exchange {request.number}, its next is {self._next[island]}: replayed or lost"
            )
        self._next[island] += 1
        _check(request, island, self.islands)
        posted = self._open.setdefault(request.number, {})
        posted[island] = request
        other = next(iter(posted))
        if _form(posted[other]) != _form(request):
            raise TransportError(
                f"islands {other} and {island} disagree on exchange {request.number}: {_form(posted[other])} against "
                f"{_form(request)}. Start all with the same code, recipe and model"
            )
        if len(posted) < self.islands:
            return {}
        del self._open[request.number]
        rows = self._combine(request.kind, [posted[k] for k in range(self.islands)])
        return {k: Answer(number=request.number, rows=row) for k, row in rows.items()}

    def missing(self) -> dict[int, list[int]]:
        """Exchange number -> islands that have not posted it, of exchanges that some island waits for."""
        return {n: [k for k in range(self.islands) if k not in posted] for n, posted in self._open.items()}

    def _combine(self, kind: str, requests: Sequence[Request]) -> Mapping[int, tuple[Tensor, ...]]:
        everyone = range(self.islands)
        if kind == "sum":
            total = self._sum(requests)
            return dict.fromkeys(everyone, (total,))
        if kind == "gather":
            return {k: tuple(requests[j].rows[0] for j in everyone if j != k) for k in everyone}
        if kind == "swap":
            return {k: tuple(requests[j].rows[k - (k > j)] for j in everyone if j != k) for k in everyone}
        return {k: requests[0].rows if k else () for k in everyone}

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
        raise TransportError(f"island {island} sent {len(request.rows)} rows for a {request.kind}, {wanted} are due")
    if len(request.weights) != (islands if request.kind == "sum" else 0):
        raise TransportError(f"island {island} sent {len(request.weights)} weights for a {request.kind}")


def _vector(row: Tensor) -> Tensor:
    if row.numel() % 4:
        raise TransportError(f"{row.numel()} bytes are no fp32 vector")
    return (row.clone() if row.storage_offset() % 4 else row).view(torch.float32)


def _form(request: Request) -> str:
    return f"{request.kind} {list(request.weights)}" if request.weights else request.kind
