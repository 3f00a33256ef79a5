"""Nodes of a run that find each other at node 0's rendezvous, and what each tells its ranks of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lowcomm.private_files import protect
from lowcomm.rendezvous.client import KeyClient, RendezvousError
from lowcomm.rendezvous.frames import check_secret
from lowcomm.rendezvous.server import KeyServer
from lowcomm.types import ConfigError, require

MEET_S = 1800.0
"""How long a late node is waited for."""
LEAVE_S = 5.0
"""How long node 0 stays for others that are still asking when its own ranks have ended."""
SECRET = "LOWCOMM_SECRET"
"""Variable with the run's secret; it is not passed on to the ranks, who read it from a private file."""
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a run, as launch/node.sh describes it."""

    index: int
    nodes: int
    ranks: int
    """Of this node."""
    master: str
    """Address or name of node 0."""
    port: int
    address: str | None
    """This node's own; None: that of the first of GLOO_SOCKET_IFNAME."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the ranks of a node stand among all."""

    first_rank: int
    ranks: int
    """Of all nodes."""


@contextlib.contextmanager
def rendezvous(node: Node, secret: bytes) -> Iterator[KeyClient]:
    """A client of node 0's keys, not connected yet; on node 0 they are served as well. Raises ConfigError."""
    with contextlib.ExitStack() as stack:
        host = node.master
        if node.index == 0:
            host = listening_address(node)
            try:
                server = stack.enter_context(KeyServer(host, node.port, secret))
            except OSError as error:
                fix = "end the program that listens there (ss -ltnp), or choose another port or address"
                legal = f"a port of {host} that is free ({error.strerror or error})"
                require(False, "--port", node.port, legal, fix)
                raise
            stack.callback(server.wait_until_alone, LEAVE_S)
        client = KeyClient(host, node.port, secret)
        stack.callback(client.close)
        yield client


def meet(client: KeyClient, node: Node, stopped: Callable[[], bool], timeout_s: float = MEET_S) -> Place | None:
    """Wait for all nodes and count their ranks. None: `stopped` said so first.

    Raises ConfigError for nodes that do not fit together, RendezvousError for one that does not come.
    """
    if not client.connect(timeout_s, stopped):
        return None
    if client.add(_key("came", node.index), 1) > 1:
        raise ConfigError(
            f"--node-rank = {node.index} is not allowed: another one for each node, and all nodes started together. "
            "Fix: correct it, or start all nodes again"
        )
    client.set(_key("node", node.index), json.dumps([node.nodes, node.ranks]).encode())
    counts: list[int] = []
    deadline = time.monotonic() + timeout_s
    while len(counts) < node.nodes:
        if stopped():
            return None
        other = len(counts)
        if client.wait([_key("node", other)], 0.5):
            counts.append(_ranks_of(client, node, other))
        elif time.monotonic() > deadline:
            raise RendezvousError(
                f"node {other} has not come in {timeout_s:.0f} s. Fix: start every node, from 0 to {node.nodes - 1}"
            )
    return Place(first_rank=sum(counts[: node.index]), ranks=sum(counts))


def _ranks_of(client: KeyClient, node: Node, other: int) -> int:
    nodes, ranks = json.loads(client.get(_key("node", other), 1.0))
    fix = "start all nodes with the same --nodes"
    require(nodes == node.nodes, "--nodes", node.nodes, f"{nodes}, as on node {other}", fix)
    return int(ranks)


def _key(what: str, index: int) -> str:
    return f"lowcomm/{what}/{index}"


def take_secret() -> bytes:
    """The secret from the environment, which then has it no more. Raises ConfigError."""
    return check_secret(os.environ.pop(SECRET, ""), SECRET)


def write_meeting(directory: Path, host: str, port: int, secret: bytes) -> Path:
    """What the ranks of this node read in `read_meeting`; the directory is private."""
    path = directory / "rendezvous.json"
    path.touch(mode=0o600)
    protect(path)
    path.write_text(json.dumps({"host": host, "port": port, "secret": secret.decode()}), encoding="utf-8")
    return path


def read_meeting(path: Path) -> KeyClient:
    """The rendezvous that this file names. Raises ConfigError."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return KeyClient(str(given["host"]), int(given["port"]), check_secret(given["secret"], str(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"LOWCOMM_STORE = '{path}' is no rendezvous of a run ({error}). Fix: unset it") from error


def listening_address(node: Node) -> str:
    """Where node 0 listens: one address, the one that --master names if it is this node's, else its own.

    A host's own name often means 127.0.1.1 on itself, where no other node would reach it.
    """
    with contextlib.suppress(OSError):
        named = {str(entry[4][0]) for entry in socket.getaddrinfo(node.master, None, socket.AF_INET)}
        literal = node.master in named
        for address in sorted(named):
            if (literal or not address.startswith("127.")) and _is_here(address):
                return address
    return node.address or address_of(os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0])


def _is_here(address: str) -> bool:
    with socket.socket() as s, contextlib.suppress(OSError):
        s.bind((address, 0))
        return True
    return False


def address_of(interface: str) -> str:
    """The IPv4 address of an interface. Raises ConfigError if it has none."""
    if sys.platform.startswith("linux"):
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s, contextlib.suppress(OSError):
            found = fcntl.ioctl(s, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
            return socket.inet_ntoa(found[20:24])
    raise ConfigError(f"GLOO_SOCKET_IFNAME = '{interface}' has no IPv4 address. Fix: pass --address")
