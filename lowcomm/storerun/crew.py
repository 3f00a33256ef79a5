"""The hands of an island of several ranks: the first talks to the store, tells the others what to do, and does it too.

An order is 32 bytes and, for some, the fragments' whole vectors, of which each rank takes its part (`pieces.py`). All
of it crosses the island's own links only.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lowcomm.data import Shard
from lowcomm.run.assembly import Run
from lowcomm.run.finale import Evaluation
from lowcomm.store.layout import Layout
from lowcomm.storerun.blocks import BlockReader
from lowcomm.storerun.hands import Hands, Stepped, Vectors
from lowcomm.storerun.pieces import Pieces

STATUSES = ("done", "stopped")
"""Those of which all ranks know; of a failure others may know nothing."""


class Order(enum.IntEnum):
    """What the other ranks do next."""

    IDLE = 0
    TAKE = 1
    REBASE = 2
    STEP = 3
    DELTA = 4
    DEPARTED = 5
    EVALUATE = 6
    EXPORT = 7
    SUMMARISE = 8
    END = 9


class Crew(Hands):
    """One rank's; `serve` on all but the first, whose calls come from the member."""

    def __init__(self, run: Run, layouts: Sequence[Layout], *, blocks: BlockReader | None, own: Shard | None) -> None:
        super().__init__(run, blocks=blocks, own=own)
        assert run.members.mesh is not None
        self.mesh, self.layouts = run.members.mesh, layouts
        self.pieces = Pieces.of(self.mesh, run.sync.state, layouts)
        self._ended = False

    def cut(self, fragment: int, flat: Tensor) -> Tensor:
        return self.pieces.cut(fragment, flat)

    def agree(self, loss: float) -> float:
        return float(self.mesh.rows(torch.tensor([loss], dtype=torch.float64)).mean())

    def take(self, weights: Vectors) -> None:
        self._tell(Order.TAKE)
        super().take(self._share(weights))

    def rebase(self, weights: Vectors, outstanding: Sequence[Tensor | None], version: int) -> None:
        self._tell(Order.REBASE, version)
        super().rebase(self._share(weights), self._share_some(outstanding), version)

    def step(self, block: int | None, number: int, lr_step: int) -> Stepped:
        self._tell(Order.STEP, -1 if block is None else block, number, lr_step)
        return super().step(block, number, lr_step)

    def delta(self, fragment: int) -> Tensor:
        self._tell(Order.DELTA, fragment)
        whole = self.pieces.join(fragment, super().delta(fragment))
        return torch.empty(0) if whole is None else whole

    def departed(self, fragment: int, weights: Tensor, outstanding: Tensor | None, everything: bool) -> None:
        self._tell(Order.DEPARTED, fragment, int(everything))
        (shared,) = self._share([weights], fragment)
        (out,) = self._share_some([outstanding], fragment)
        super().departed(fragment, shared, out, everything)

    def evaluate(self, weights: Vectors) -> Evaluation:
        self._tell(Order.EVALUATE)
        return super().evaluate(self._share(weights))

    def export(self) -> None:
        self._tell(Order.EXPORT)
        super().export()

    def summarise(self, status: str, wall_s: float, result: Evaluation | None) -> None:
        if status in STATUSES:
            self._tell(Order.SUMMARISE, STATUSES.index(status), int(result is not None))
        super().summarise(status, wall_s, result)

    def idle(self) -> None:
        self._tell(Order.IDLE)

    def end(self) -> None:
        if not self._ended and self.mesh.rank == 0:
            self._ended = True
            with contextlib.suppress(RuntimeError):  # a rank that is gone hears nothing
                self._tell(Order.END)

    def serve(self) -> None:
        """On the other ranks: do what the first one does, until it lets them go."""
        weights = [torch.empty(layout.numel) for layout in self.layouts]
        result: Evaluation | None = None
        while (told := self._hear())[0] is not Order.END:
            order, a, b, c = told
            match order:
                case Order.TAKE:
                    super().take(self._share(weights))
                case Order.REBASE:
                    super().rebase(self._share(weights), self._share_some(weights), a)
                case Order.STEP:
                    super().step(None if a < 0 else a, b, c)
                case Order.DELTA:
                    self.pieces.join(a, super().delta(a))
                case Order.DEPARTED:
                    (shared,) = self._share([weights[a]], a)
                    (out,) = self._share_some([weights[a]], a)
                    super().departed(a, shared, out, bool(b))
                case Order.EVALUATE:
                    result = super().evaluate(self._share(weights))
                case Order.EXPORT:
                    super().export()
                case Order.SUMMARISE:
                    super().summarise(STATUSES[a], 0.0, result if b else None)
                case _:
                    pass

    def _tell(self, order: Order, a: int = 0, b: int = 0, c: int = 0) -> None:
        if self.mesh.rank == 0:
            dist.broadcast(torch.tensor([order, a, b, c]), group_src=0, group=self.mesh.inside)

    def _hear(self) -> tuple[Order, int, int, int]:
        row = torch.zeros(4, dtype=torch.int64)
        dist.broadcast(row, group_src=0, group=self.mesh.inside)
        order, a, b, c = (int(n) for n in row)
        return Order(order), a, b, c

    def _share(self, vectors: Vectors, first: int = 0) -> list[Tensor]:
        """The first rank's vectors, of the fragments from `first` on; elsewhere what is given has their sizes only."""
        shared = [
            v if self.mesh.rank == 0 else torch.empty(self.layouts[first + i].numel) for i, v in enumerate(vectors)
        ]
        for vector in shared:
            dist.broadcast(vector, group_src=0, group=self.mesh.inside)
        return shared

    def _share_some(self, vectors: Sequence[Tensor | None], first: int = 0) -> list[Tensor | None]:
        there = torch.tensor([v is not None for v in vectors])
        dist.broadcast(there, group_src=0, group=self.mesh.inside)
        found: list[Tensor | None] = []
        for i, vector in enumerate(vectors):
            sent = None if vector is None or not there[i] else self._share([vector], first + i)[0]
            found.append(sent)
        return found
