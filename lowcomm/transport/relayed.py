"""One island whose exchanges go through a relay: a server between islands that can't reach each other.

The same sums and rows as the collective transport, bit for bit: `Relay` adds in island order. Bytes are those of the
island's own link to the relay: a sum costs 4 B per element each way, whatever the number of islands; a row is sent once
and n - 1 come back. Collective, without a relay, sends a row n - 1 times.

Raises TransportError if the relay says that the run failed, or does not answer in time. The relay knows which islands
are lost, so that all others miss the same ones in an exchange; between processes one may have heard a dying island that
another did not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lowcomm.transport.base import KEPT, MOST_BYTES, Altered, Arrival, Transport, check_sizes
from lowcomm.transport.relay import Answer, Request
from lowcomm.types import TransportError

Waiting = Callable[[], Answer]
"""Waits for the answer."""
Post = Callable[[Request], Waiting]
"""Hands a request to whatever carries it; returns at once."""


class Relayed(Transport):
    """Island `island` of `islands`; `post` carries its requests to the relay."""

    def __init__(self, islands: int, island: int, post: Post) -> None:
        self.islands = islands
        self.local = (island,)
        self.sent_bytes = [0]
        self.received_bytes = [0]
        self.lost: Mapping[int, str] = {}
        self._post = post
        self._number = 0
        self._lock = threading.Lock()

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        (vector,) = vectors
        self._need_all("sum")
        mine = vector if weights[self.local[0]] else vector[:0]
        (row,) = _due(self._ask("sum", [mine], tuple(weights))(), 1)
        total = _typed(row, out, out.numel())
        out.copy_(total)
        return [{}]  # what carries requests looks after them: a relay sees no checksum of a sum

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        (row,) = rows
        if self.goes_on:
            return self._gather_among_present(row)
        came = self._among("gather", [row])()
        return torch.stack([_typed(came[k], row, row.numel()) if k in came else row for k in range(self.islands)])

    def gather_sized(self, rows: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> list[Tensor]:
        (row,), before = rows, len(self.lost)
        came = self._among("gather", [row], self.goes_on)()
        self._check_lost(before)
        check_sizes([came[k].numel() if k in came else 0 for k in range(self.islands)], most_bytes)
        there = {**{k: r.to(row.device) for k, r in came.items()}, self.local[0]: row}
        return [there[k] if k in there else row[:0] for k in range(self.islands)]

    def start_swap(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        (sends,), (expected,), before = rows, sizes, len(self.lost)
        wait = self._swap(sends, expected, self.goes_on)

        def result() -> list[list[Tensor]]:
            arrived = wait()
            self._check_lost(before)
            return [[sends[self.local[0]][:0] if row is None else row for row in arrived]]

        return result

    def gather_present(self, rows: Sequence[Tensor]) -> list[Tensor | None]:
        (row,) = rows
        came = self._among("gather", [row], present=True)()
        there = {**{k: _typed(r, row, row.numel()) for k, r in came.items()}, self.local[0]: row}
        return [there.get(k) for k in range(self.islands)]

    def swap_present(
        self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]
    ) -> list[list[Tensor | None]]:
        (sends,), (expected,) = rows, sizes
        return [self._swap(sends, expected, present=True)()]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        (tensor,) = tensors
        self._need_all("broadcast")
        first = self.local[0] == 0
        rows = _due(self._ask("broadcast", [tensor.detach().contiguous().view(-1)] if first else [])(), int(not first))
        if not first:
            tensor.copy_(_typed(rows[0], tensor, tensor.numel()).view_as(tensor))

    def close(self) -> None:
        return None

    def _swap(self, sends: Sequence[Tensor], sizes: Sequence[int], present: bool) -> Callable[[], list[Tensor | None]]:
        me = self.local[0]
        rows = [row[:0] if k in self.lost else row for k, row in enumerate(sends) if k != me]
        wait = self._among("swap", rows, present)

        def result() -> list[Tensor | None]:
            there = {**{k: _typed(r, sends[me], sizes[k]) for k, r in wait().items()}, me: sends[me]}
            return [there.get(k) for k in range(self.islands)]

        return result

    def _among(self, kind: str, rows: Sequence[Tensor], present: bool = False) -> Callable[[], dict[int, Tensor]]:
        """Post a gather or a swap; what came, by island, of the others that are not lost."""
        me, known = self.local[0], set(self.lost)
        waiting = self._ask(kind, rows, present=present)

        def wait() -> dict[int, Tensor]:
            answer = waiting()
            lost = set(answer.lost)
            if not known <= lost <= set(range(self.islands)) - {me} or (lost and not present):
                raise TransportError(f"islands {sorted(lost)} can't be lost in exchange {answer.number}. {KEPT}")
            there = [k for k in range(self.islands) if k != me and k not in lost]
            rows = _due(answer, len(there))
            self._lose({k: cause for k, cause in answer.lost.items() if k not in self.lost})
            return dict(zip(there, rows, strict=True))

        return wait

    def _ask(
        self, kind: str, rows: Sequence[Tensor], weights: tuple[float, ...] = (), present: bool = False
    ) -> Waiting:
        """Post a request; both directions of it are counted once its answer is there."""
        sent = tuple(row.detach().cpu().contiguous().view(torch.uint8) for row in rows)
        with self._lock:  # numbers in the order of posting, also where a thread exchanges beside the training
            request = Request(number=self._number, kind=kind, rows=sent, weights=weights, present=present)
            waiting = self._post(request)
            self._number += 1
            self.sent_bytes[0] += sum(row.numel() for row in sent)

        def wait() -> Answer:
            answer = waiting()
            with self._lock:
                self.received_bytes[0] += sum(row.numel() for row in answer.rows)
            return answer

        return wait


def _due(answer: Answer, rows: int) -> tuple[Tensor, ...]:
    if len(answer.rows) != rows:
        raise TransportError(f"{len(answer.rows)} rows came in exchange {answer.number}, {rows} were due. {KEPT}")
    return answer.rows


def _typed(row: Tensor, like: Tensor, numel: int) -> Tensor:
    """A row of bytes as a vector of `numel` elements of `like`'s dtype, on its device."""
    if row.numel() != numel * like.element_size():
        raise TransportError(f"{row.numel()} bytes came where {numel * like.element_size()} were due. {KEPT}")
    aligned = row.clone() if row.storage_offset() % like.element_size() else row
    return aligned.view(like.dtype).to(like.device)
