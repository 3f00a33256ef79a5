"""n islands in one process: the same trainer and the same sums as real processes, bit for bit.

It counts the bytes that the collective transport would send for the same call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.transport.base import BLOCK, MOST_BYTES, Altered, Arrival, Transport, check_sizes, ordered_sum, sum_bytes
from lowcomm.types import require


class Simulated(Transport):
    """All islands are local; nothing crosses a socket."""

    def __init__(self, islands: int) -> None:
        require(islands >= 1, "islands", islands, "1 or more", "4 islands are usual")
        self.islands = islands
        self.local = tuple(range(islands))
        self.sent_bytes = [0] * islands
        self.received_bytes = [0] * islands
        self._scratch: Tensor | None = None

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        if self._scratch is None or self._scratch.device != out.device:
            self._scratch = torch.empty(BLOCK, device=out.device)
        ordered_sum(vectors, weights, out, self._scratch)
        crossing_bytes = sum_bytes(out, self.islands)
        self.count(crossing_bytes, crossing_bytes)
        return [{} for _ in self.local]

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(rows))
        crossing_bytes = (self.islands - 1) * rows[0].numel() * rows[0].element_size()
        self.count(crossing_bytes, crossing_bytes)
        return stacked

    def gather_sized(self, rows: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> list[Tensor]:
        check_sizes([r.numel() for r in rows], most_bytes)
        total_bytes = sum(r.numel() for r in rows)
        for i, row in enumerate(rows):
            self.sent_bytes[i] += (self.islands - 1) * (row.numel() + 8)
            self.received_bytes[i] += total_bytes - row.numel() + (self.islands - 1) * 8
        return list(rows)

    def start_swap(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        for i in range(self.islands):
            self.sent_bytes[i] += sum(row.numel() for k, row in enumerate(rows[i]) if k != i)
            self.received_bytes[i] += sum(size for k, size in enumerate(sizes[i]) if k != i)
        arrived = [[rows[k][i] for k in range(self.islands)] for i in range(self.islands)]
        return lambda: arrived

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors[1:]:
            tensor.copy_(tensors[0])
        if self.islands > 1:
            size_bytes = tensors[0].numel() * tensors[0].element_size()
            self.sent_bytes[0] += (self.islands - 1) * size_bytes
            for i in range(1, self.islands):
                self.received_bytes[i] += size_bytes

    def close(self) -> None:
        return None
