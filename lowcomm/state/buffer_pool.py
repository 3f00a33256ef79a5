"""Flat fp32 vectors that fragments borrow for an exchange, so that a sync adds one of them and not three per fragment.

They are kept between the rounds: the pages of a fresh one cost as much time as a pass over memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


class BufferPool:
    """Keeps vectors on one device, lends them and takes them back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._free: list[Tensor] = []
        self._lent: dict[int, Tensor] = {}
        """What was lent, whole, by the address of its first element."""

    def new(self, size: int) -> Tensor:
        """Zeros, fp32, 1-D; pinned on the host of a GPU."""
        flat = torch.zeros(size, dtype=torch.float32)
        return flat.pin_memory() if self.device.type == "cpu" and torch.cuda.is_available() else flat.to(self.device)

    def take(self, size: int) -> Tensor:
        """fp32 of `size` elements with anything in it: the smallest free vector that is long enough, or a new one.

        A new one replaces the longest that is free, so that there are never more than were lent at one time.
        """
        enough = [flat for flat in self._free if flat.numel() >= size]
        if enough:
            flat = min(enough, key=Tensor.numel)
            self._drop(flat)
        else:
            if self._free:
                self._drop(max(self._free, key=Tensor.numel))
            flat = self.new(size)
        self._lent[flat.data_ptr()] = flat
        return flat[:size]

    def give(self, flat: Tensor) -> None:
        """Take back what `take` gave."""
        self._free.append(self._lent.pop(flat.data_ptr()))

    @property
    def total_bytes(self) -> int:
        """Bytes of all vectors, lent and free."""
        return sum(4 * flat.numel() for flat in (*self._free, *self._lent.values()))

    def _drop(self, flat: Tensor) -> None:
        self._free = [other for other in self._free if other is not flat]
