"""Groups of gloo that can be given up: made anew among fewer ranks, and severed while a thread waits in one.

gloo fails what goes to or from a process that is gone, and lets all else wait, for a frozen one until the timeout.
Whoever finds a group broken shuts its own connections: whatever waits on them, here and there, then fails at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

STRIPE_BYTES = 1 << 17
"""A row is shared by as many streams as get this much of it."""
_OPEN = Path("/proc/self/fd")
BUILD_S = 60.0
"""What it may take until all ranks of a new group are connected."""


def sockets() -> frozenset[str]:
    """Names of this process's sockets; none where the system does not list them."""
    found: set[str] = set()
    for entry in _OPEN.iterdir() if _OPEN.is_dir() else ():
        with contextlib.suppress(OSError):  # closed meanwhile
            if (name := str(entry.readlink())).startswith("socket:"):
                found.add(name)
    return frozenset(found)


def sever(names: frozenset[str], spared: Sequence[int] = ()) -> None:
    """Shut the TCP connections among these sockets, but those with a port that is spared."""
    for entry in list(_OPEN.iterdir()) if _OPEN.is_dir() else ():
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if str(entry.readlink()) not in names:
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as s:
                tcp = s.family in (socket.AF_INET, socket.AF_INET6) and s.type == socket.SOCK_STREAM
                if tcp and s.getpeername()[1] not in spared and s.getsockname()[1] not in spared:
                    s.shutdown(socket.SHUT_RDWR)


def gloo_group(store: dist.Store, rank: int, ranks: int, timeout_s: float) -> dist.ProcessGroup:
    """A group that torch.distributed's registry does not know, over gloo. Raises RuntimeError if it can't be made."""
    gloo = dist.ProcessGroup.BackendType.GLOO
    backend = dist.ProcessGroupGloo(store, rank, ranks, timedelta(seconds=min(timeout_s, BUILD_S)))
    backend._set_default_timeout(timedelta(seconds=timeout_s))
    group = dist.ProcessGroup(store, rank, ranks)
    group._set_default_backend(gloo)
    group._register_backend(torch.device("cpu"), gloo, backend)
    return group


def gloo_beside(group: dist.ProcessGroup | None, timeout_s: float | None) -> dist.ProcessGroup:
    """A group of gloo with the ranks of another one."""
    ranks = dist.get_process_group_ranks(group)
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    made = dist.new_group(ranks, timeout=timeout, backend="gloo", use_local_synchronization=True)
    assert isinstance(made, dist.ProcessGroup)
    return made


def stripes(lanes: Sequence[dist.ProcessGroup | None], row: Tensor) -> list[tuple[dist.ProcessGroup | None, Tensor]]:
    """The groups that share a row (1-D) and the part that each carries: no more than there are STRIPE_BYTES in it.

    None for an empty row, as even that would be a message. Both ends know the size of a row, so they agree.
    """
    if row.numel() == 0:
        return []
    used = max(1, min(len(lanes), row.numel() * row.element_size() // STRIPE_BYTES))
    step = -(-row.numel() // used)
    return [(lane, row[i * step : (i + 1) * step]) for i, lane in enumerate(lanes[:used])]
