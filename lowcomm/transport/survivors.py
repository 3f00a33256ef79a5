"""Sends and receives that go on without peers whose process is gone.

A process that dies closes its connections, and gloo then fails what is on its way to or from it, nothing else. A peer
that hangs until the timeout makes gloo close all connections of the group: then every peer is gone from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import Tensor

Piece = tuple[int, dist.ProcessGroup | None, Tensor]
"""Island, the group that carries it, 1-D tensor on the CPU."""


def swap_living(sends: Sequence[Piece], receives: Sequence[Piece]) -> dict[int, str]:
    """Send and receive all pieces at once and wait; the cause by island of those with whom that failed.

    What came from them is torn. Each end of a group takes its pieces in the other's order.
    """
    gone: dict[int, str] = {}
    works: list[tuple[int, dist.Work | None]] = []
    for pieces, begin in ((receives, _receive), (sends, _send)):
        for island, group, part in pieces:
            _unless_gone(gone, island, lambda i=island, g=group, p=part, b=begin: works.append((i, b(p, g, i))))
    for island, work in works:
        if work is not None:
            _unless_gone(gone, island, work.wait)
    return gone


def _receive(part: Tensor, group: dist.ProcessGroup | None, island: int) -> dist.Work | None:
    return dist.irecv(part, group=group, group_src=island)


def _send(part: Tensor, group: dist.ProcessGroup | None, island: int) -> dist.Work | None:
    return dist.isend(part, group=group, group_dst=island)


def _unless_gone(gone: dict[int, str], island: int, action: Callable[[], object]) -> None:
    try:
        action()
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[0].partition(". ")[0]  # gloo's advice follows, its source line leads
        gone.setdefault(island, cause.partition("] ")[2] or cause)
