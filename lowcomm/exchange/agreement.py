"""Agreement among the islands that are left, though some die while they take part in it.

FloodSet, Lynch, Distributed Algorithms (1996), section 6.2: everybody passes on what it heard. After a gather in which
nobody dies, or is heard by all or by none, what anybody knows all know; so two deaths need three gathers. All take as
many, whatever they see, for they must be at the same message when they go on.
Cost: `gathers` times the row, to each of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.transport.base import Transport


def gathers(islands: int) -> int:
    """Enough for two islands that die in it, each heard by some only; with fewer than four fewer can be left."""
    return max(1, min(3, islands - 1))


def maximum(transport: Transport, rows: Sequence[Tensor]) -> Tensor:
    """The elementwise maximum of the rows of all that were heard: uint8, 1-D, on the CPU, one per local island."""
    heard = rows[0]
    for _ in range(gathers(transport.islands)):
        heard = torch.stack([row for row in transport.gather_present(rows) if row is not None]).amax(dim=0)
        rows = [heard] * len(rows)
    return heard
