"""Listening sockets of a run that our own launchers started: proves who has connected, and takes no more connections.

gloo listens while its groups are made and for ever after (on one machine on 127.0.0.1, on several on the address that
was chosen), and asks who connects for nothing: a stranger could take an island's place. When the groups are there,
every listener gets a socket filter that drops all packets, so that nobody can connect any more; then each rank tells
the others, through the store that only this run can write, which connections it has, and refuses one whose other end
no rank has. Addresses must therefore arrive as they were sent: no NAT between the nodes. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from lowcomm.types import TransportError

_OPEN = Path("/proc/self/fd")
_SO_ATTACH_FILTER = 26
_DROP = struct.pack("HBBI", 0x06, 0, 0, 0)
"""One instruction of classic BPF: return 0 bytes of the packet."""

Ends = tuple[str, int, str, int]
"""A connection: address and port of this end, address and port of the other."""


def close_listeners(store: dist.Store, what: str, rank: int, ranks: int) -> None:
    """Let nobody else connect to this process; all ranks call it alike when a group is there. what: names the call.

    Raises TransportError if a process that is not one of the ranks has connected.
    """
    if not _OPEN.is_dir():
        return
    with _sockets() as found:
        listening = {s.getsockname()[1] for s in found if _listens(s)}
        for s in found:
            if _listens(s):
                _drop_all(s)
        ends = [e for s in found if not _listens(s) and (e := _ends(s)) is not None]
    store.set(f"{what} {rank}", json.dumps(ends))
    known = {tuple(e) for k in range(ranks) for e in json.loads(store.get(f"{what} {k}"))}
    for address, port, other, other_port in ends:
        if port in listening and (other, other_port, address, port) not in known:
            raise TransportError(
                f"a process that is not of this run has connected from {other}:{other_port} to {address}:{port} of "
                f"rank {rank}: nothing was trained. Fix: find it with `ss -tnp`, or NAT on the way, then start again"
            )


@contextlib.contextmanager
def _sockets() -> Iterator[list[socket.socket]]:
    """Copies of this process's TCP sockets."""
    with contextlib.ExitStack() as stack:
        found: list[socket.socket] = []
        for entry in list(_OPEN.iterdir()):
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(entry.readlink()).startswith("socket:"):
                    s = stack.enter_context(socket.socket(fileno=os.dup(int(entry.name))))
                    if s.family in (socket.AF_INET, socket.AF_INET6) and s.type == socket.SOCK_STREAM:
                        found.append(s)
        yield found


def _listens(s: socket.socket) -> bool:
    return s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _ends(s: socket.socket) -> Ends | None:
    """None: it is not connected (any more)."""
    try:
        return (*s.getsockname()[:2], *s.getpeername()[:2])
    except OSError:
        return None


def _drop_all(s: socket.socket) -> None:
    program = ctypes.create_string_buffer(_DROP, len(_DROP))
    s.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
