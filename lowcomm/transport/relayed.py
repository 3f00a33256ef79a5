"""One island whose exchanges go through a relay: a server between islands that can't reach each other.

The same sums and rows as the collective transport, bit for bit: `Relay` adds in island order. Bytes are those of the
island's own link to the relay: a sum costs 4 B per element each way, whatever the number of islands; a row is sent once
and n - 1 come back. Collective, without a relay, sends a row n - 1 times.

Raises TransportError if the relay says that the run failed, or does not answer in time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowcomm.transport.base import Arrival, Transport
from lowcomm.transport.relay import Request
from lowcomm.types import TransportError

Waiting = Callable[[], Sequence[Tensor]]
"""Waits for the rows of the answer."""
Post = Callable[[Request], Waiting]
"""Hands a request to whatever carries it; returns at once."""


class Relayed(Transport):
    """Island `island` of `islands`; `post` carries its requests to the relay."""

    def __init__(self, islands: int, island: int, post: Post) -> None:
        self.islands = islands
        self.local = (island,)
        self.sent_bytes = [0]
        self.received_bytes = [0]
        self._post = post
        self._number = 0
        self._lock = threading.Lock()

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
        (vector,) = vectors
        mine = vector if weights[self.local[0]] else vector[:0]
        (row,) = self._ask("sum", [mine], tuple(weights))()
        total = _typed(row, out, out.numel())
        out.copy_(total)

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        (row,) = rows
        others = [_typed(r, row, row.numel()) for r in self._ask("gather", [row])()]
        return torch.stack([*others[: self.local[0]], row, *others[self.local[0] :]])

    def gather_sized(self, rows: Sequence[Tensor]) -> list[Tensor]:
        (row,) = rows
        others = [r.to(row.device) for r in self._ask("gather", [row])()]
        return [*others[: self.local[0]], row, *others[self.local[0] :]]

    def start_swap(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        (sends,), (expected,), me = rows, sizes, self.local[0]
        wait = self._ask("swap", [row for k, row in enumerate(sends) if k != me])
        wanted = [size for k, size in enumerate(expected) if k != me]

        def result() -> list[list[Tensor]]:
            arrived = [_typed(r, sends[me], size) for r, size in zip(wait(), wanted, strict=True)]
            return [[*arrived[:me], sends[me], *arrived[me:]]]

        return result

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        (tensor,) = tensors
        first = self.local[0] == 0
        rows = self._ask("broadcast", [tensor.detach().contiguous().view(-1)] if first else [])()
        if not first:
            tensor.copy_(_typed(rows[0], tensor, tensor.numel()).view_as(tensor))

    def close(self) -> None:
        return None

    def _ask(self, kind: str, rows: Sequence[Tensor], weights: tuple[float, ...] = ()) -> Waiting:
        """Post a request; both directions of it are counted once its answer is there."""
        sent = tuple(row.detach().cpu().contiguous().view(torch.uint8) for row in rows)
        with self._lock:  # numbers in the order of posting, also where a thread exchanges beside the training
            waiting = self._post(Request(number=self._number, kind=kind, rows=sent, weights=weights))
            self._number += 1
            self.sent_bytes[0] += sum(row.numel() for row in sent)

        def wait() -> Sequence[Tensor]:
            arrived = waiting()
            with self._lock:
                self.received_bytes[0] += sum(row.numel() for row in arrived)
            return arrived

        return wait


def _typed(row: Tensor, like: Tensor, numel: int) -> Tensor:
    """A row of bytes as a vector of `numel` elements of `like`'s dtype, on its device."""
    if row.numel() != numel * like.element_size():
        raise TransportError(
            f"{row.numel()} bytes came where {numel * like.element_size()} were due. Nothing was committed: local "
            "weights are kept and the pseudo-gradient stays pending."
        )
    aligned = row.clone() if row.storage_offset() % like.element_size() else row
    return aligned.view(like.dtype).to(like.device)
