"""n islands in one process: the same trainer and the same sums as real processes, bit for bit.

It counts the bytes that the collective transport would send for the same call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.transport.base import (
    BLOCK,
    CHECKSUM_BYTES,
    MOST_BYTES,
    Altered,
    Arrival,
    Transport,
    check_sizes,
    may_take_place,
    ordered_sum,
    sum_bytes,
)
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
        ordered_sum(vectors, weights, out, self._scratch_on(out.device))
        crossing_bytes = sum_bytes(out, self.islands)
        self.count(crossing_bytes, crossing_bytes)
        return [{} for _ in self.local]

    def _scratch_on(self, device: torch.device) -> Tensor:
        if self._scratch is None or self._scratch.device != device:
            self._scratch = torch.empty(BLOCK, device=device)
        return self._scratch

    def sum_present(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered | None:
        """At once, where n islands would cut n vectors into n parts each; the bytes are those of the parts."""
        if type(self).start_swap is not Simulated.start_swap:
            return None  # something happens to what is sent
        place = [i for i, v in enumerate(vectors) if weights[i] != 0 and v.data_ptr() == out.data_ptr()]
        total = out if all(may_take_place(i, weights) for i in place) else torch.empty_like(out)
        ordered_sum(vectors, weights, total, self._scratch_on(out.device))
        if total is not out:
            out.copy_(total)
        size, numel = -(-out.numel() // self.islands), out.numel()
        parts_bytes = [4 * max(0, min((k + 1) * size, numel) - k * size) + CHECKSUM_BYTES for k in range(self.islands)]
        whole_bytes, senders = sum(parts_bytes), sum(w != 0 for w in weights)
        back_bytes = (self.islands - 1) * 4 * size
        for i, (own_bytes, weight) in enumerate(zip(parts_bytes, weights, strict=True)):
            self.sent_bytes[i] += back_bytes + (whole_bytes - own_bytes if weight != 0 else 0)
            self.received_bytes[i] += back_bytes + (senders - (weight != 0)) * own_bytes
        return [{}] * len(self.local)

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        same = all(row is rows[0] for row in rows)
        stacked = rows[0].repeat(len(rows), 1) if same else torch.stack(list(rows))
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
