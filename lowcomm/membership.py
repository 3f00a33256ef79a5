"""Who takes part in a run: the world's ranks, divided into islands, and the groups that join them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lowcomm.config import RunConfig
from lowcomm.island import Mesh
from lowcomm.island.mesh import check_divides, divisors
from lowcomm.rendezvous.nodes import read_meeting
from lowcomm.rendezvous.store import RunStore
from lowcomm.run.left_behind import GOES_ON
from lowcomm.transport import Collective, Simulated, Transport
from lowcomm.transport.board import STORE_S, Board, FileBoard, StoreBoard
from lowcomm.transport.heartbeat import Heartbeat
from lowcomm.transport.links import sockets
from lowcomm.transport.listeners import close_listeners
from lowcomm.transport.regroup import Epoch
from lowcomm.transport.regrouping import Regrouping
from lowcomm.types import ConfigError, require

DEFAULT_ISLANDS = 4


@dataclass(frozen=True, kw_only=True)
class World:
    """Who this process is, from torchrun's environment (or alone)."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    relayed: bool = False
    """Whether each process is an island that a relay joins (lowcomm/federation), rather than torch.distributed."""
    store: Path | None = None
    """File by which our own ranks find each other, in a directory of mode 0700; None: torchrun's address.

    Of one machine it is a FileStore, of several it says where their rendezvous is (rendezvous.json).
    """

    @classmethod
    def from_environment(cls) -> World:
        """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun sets them; LOWCOMM_STORE of our own ranks."""
        get = os.environ.get
        if "RANK" in os.environ and "WORLD_SIZE" not in os.environ:
            raise ConfigError(
                f"RANK = {get('RANK')!r} is not allowed: RANK and WORLD_SIZE, or none of them. Fix: start with "
                "torchrun, or unset RANK"
            )
        size, local_size = _from_environment("WORLD_SIZE", 1, 1), _from_environment("LOCAL_WORLD_SIZE", 1, 1)
        return cls(
            rank=_from_environment("RANK", 0, 0, size - 1),
            size=size,
            local_rank=_from_environment("LOCAL_RANK", 0, 0, local_size - 1),
            local_size=local_size,
            store=Path(get("LOWCOMM_STORE", "")) if get("LOWCOMM_STORE") else None,
        )

    @property
    def writes(self) -> bool:
        """Whether this process writes what a run leaves behind: rank 0, and each client into its own run directory."""
        return self.rank == 0 or self.relayed

    @property
    def under_torchrun(self) -> bool:
        """Whether torchrun (or another launcher with its variables) started this process."""
        return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How this process talks to the others."""

    transport: Transport
    """Among the islands: with several ranks each, among those that hold the same part."""
    everyone: Transport
    """Among all ranks of the run; nothing that a sync sends goes by it."""
    mesh: Mesh | None
    """None: islands of one rank."""
    store: dist.Store | None = None
    """By which the ranks have found each other, unless torchrun started them: nobody else can write it."""
    heartbeat: Heartbeat | None = None
    """Tells which of the other islands are alive; None: nothing does."""
    directory: Path | None = None
    """Private one of the ranks of this machine, where our own supervisor started them."""

    def share(self, tokens: int) -> int:
        """This rank's share of the tokens of its island's batch; the shares of its ranks sum to `tokens`."""
        mesh = self.mesh
        return tokens if mesh is None else tokens // mesh.size + (mesh.rank < tokens % mesh.size)

    def close_listeners(self, what: str) -> None:
        """Let no process but the run's ranks connect to this one, unless torchrun started it; all ranks call it alike.

        what: names the call. Raises TransportError if another process has connected.
        """
        if self.store is not None:
            close_listeners(self.store, what, dist.get_rank(), dist.get_world_size())

    def may_lose(self) -> None:
        """All have begun: from now on islands may be lost, where the others can go on without them."""
        if isinstance(self.transport, Regrouping):
            self.transport.survives = True
        if self.directory is not None and self.heartbeat is not None and goes_on(self.transport):
            FileBoard(self.directory).post(GOES_ON, "")

    def leave(self, why: str) -> None:
        """Tell the others that this process goes of its own will."""
        if self.heartbeat is not None:
            self.heartbeat.stop(why)

    def close(self) -> None:
        """Leave all groups; safe to call twice."""
        self.transport.close()
        self.everyone.close()
        if self.heartbeat is not None:
            self.heartbeat.linger()


def _from_environment(name: str, default: int, lowest: int, highest: int | None = None) -> int:
    """A whole number that torchrun sets. Raises ConfigError for any other value."""
    given = os.environ.get(name)
    if given is None:
        return default
    ok = given.isascii() and given.isdigit() and lowest <= int(given) and (highest is None or int(given) <= highest)
    legal = f"a whole number from {lowest}" + ("" if highest is None else f" to {highest}")
    require(ok, name, given, legal, "start with torchrun, which sets it, or unset it")
    return int(given)


def count_islands(config: RunConfig, world: World) -> tuple[int, int]:
    """(islands, ranks of each); raises ConfigError if they do not fit torchrun's world."""
    size = config.island.size
    if world.relayed:
        legal = f"{world.size}, the clients of the federation"
        require(config.islands in (None, world.size), "islands", config.islands, legal, "leave it out")
        require(size in (None, 1), "island.size", size, "1, as each client is one process", "leave it out")
        require(config.transport != "simulated", "transport", "simulated", "collective", "leave it out")
        return world.size, 1
    if config.transport == "simulated" and world.size > 1:
        raise ConfigError(
            f"transport = 'simulated' runs in one process, but torchrun started {world.size}. "
            "Fix: leave out torchrun, or use --transport collective"
        )
    if config.transport == "simulated" or not world.under_torchrun:
        return DEFAULT_ISLANDS if config.islands is None else config.islands, 1 if size is None else size
    if size is None:
        size = _default_size(config, world)
    check_divides(size, world.size)
    if config.islands is not None and config.islands != world.size // size:
        what = "each an island" if size == 1 else f"{size} for each island"
        raise ConfigError(
            f"islands = {config.islands} is not allowed: torchrun started {world.size} processes, {what}. "
            f"Fix: pass --islands {world.size // size}, leave it out, or start {config.islands * size} processes"
        )
    return world.size // size, size


def _default_size(config: RunConfig, world: World) -> int:
    """Ranks of an island where none are asked for: what --islands leaves, a node's ranks on several nodes, else 1."""
    if config.islands is None:
        return world.local_size if world.local_size < world.size else 1
    if config.islands >= 1 and world.size % config.islands == 0:
        return world.size // config.islands
    if config.islands > world.size:
        return 1
    raise ConfigError(
        f"islands = {config.islands} is not allowed: torchrun started {world.size} processes, which divide into "
        f"{divisors(world.size)} islands. Fix: pass one of these, or start a multiple of {config.islands} processes"
    )


def join(config: RunConfig, world: World, device: torch.device, transport: Transport | None = None) -> Membership:
    """Join the groups that the run needs; `config` has its number of islands and their size filled in.

    transport: what joins the islands instead, each of one process.
    """
    assert config.islands is not None
    if transport is not None:
        return Membership(transport=transport, everyone=transport, mesh=None)
    if config.transport == "simulated" or not world.under_torchrun:
        simulated = Simulated(config.islands)
        return Membership(transport=simulated, everyone=simulated, mesh=None)
    timeout_s, streams = config.sync.timeout_s, config.sync.streams
    store = None if world.store is None else open_store(world.store, timeout_s)
    alone = config.island.size == 1
    beats = alone and config.sync.heartbeat_s is not None and world.size > 1
    board = FileBoard(world.store.parent) if beats and world.store and isinstance(store, dist.FileStore) else None
    if board is not None:
        board.join(world.rank)
    before = sockets()
    try:
        everyone = Collective.open(device, timeout_s, streams if alone else 1, store, world.rank, world.size)
    except (RuntimeError, ValueError, OSError) as error:  # what torch raises here is of all three kinds
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"rank {world.rank} could not join the other {world.size - 1}: {cause}. Fix: correct "
            + ("MASTER_ADDR, MASTER_PORT (another program may use it) or " if store is None else "")
            + "GLOO_SOCKET_IFNAME"
        ) from error
    if alone:
        heartbeat = _heartbeat(config, world, board, store) if beats else None
        return _islands_of_one(config, world, device, everyone, store, heartbeat, sockets() - before)
    assert config.island.size is not None and dist.is_initialized()
    mesh = Mesh.build(config.island.size, device.type, timeout_s)
    peers = Collective(mesh.peers, beside=mesh.beside, streams=streams, timeout_s=timeout_s)
    members = Membership(transport=peers, everyone=everyone, mesh=mesh, store=store)
    members.close_listeners("groups")  # NCCL listens later, and knows its own by a secret
    return members


def _islands_of_one(
    config: RunConfig,
    world: World,
    device: torch.device,
    everyone: Collective,
    store: dist.Store | None,
    heartbeat: Heartbeat | None,
    connections: frozenset[str],
) -> Membership:
    """Each rank an island. connections: sockets of the group."""
    transport = everyone
    if heartbeat is not None and may_regroup(config, device):
        transport = Regrouping(
            everyone, heartbeat, connections, timeout_s=config.sync.timeout_s, streams=config.sync.streams,
            spared=_master_ports(), joined=lambda epoch: _close_again(store, epoch, world.rank),
        )  # fmt: skip
    directory = None if world.store is None else world.store.parent
    members = Membership(
        transport=transport, everyone=transport, mesh=None, store=store, heartbeat=heartbeat, directory=directory
    )
    members.close_listeners("groups")
    if heartbeat is not None:
        heartbeat.start()
    return members


def may_regroup(config: RunConfig, device: torch.device) -> bool:
    """Whether exchanges go on in a group that is made anew: islands in lockstep whose vectors are on the CPU.

    Secure sums and gossip go on without one, each in its own way.
    """
    lockstep = config.sync.exchange is None and config.sync.secure is None
    return lockstep and (device.type == "cpu" or config.sync.outer_device == "cpu")


def goes_on(transport: Transport) -> bool:
    """Whether this run goes on when an island is lost."""
    return transport.goes_on or isinstance(transport, Regrouping)


def _heartbeat(config: RunConfig, world: World, board: Board | None, own: dist.Store | None) -> Heartbeat | None:
    """None: ranks that neither our own store nor a TCPStore of torchrun has joined have no board."""
    board = board or (None if own is None else StoreBoard(own, own))  # its threads do not hold each other up
    if board is None:
        store = dist.distributed_c10d._get_default_store()
        while isinstance(store, dist.PrefixStore):
            store = store.underlying_store
        if not isinstance(store, dist.TCPStore):
            return None
        apart: dist.Store = store.clone()  # pyright: ignore[reportAttributeAccessIssue]
        apart.set_timeout(timedelta(seconds=STORE_S))
        board = StoreBoard(store, apart)
    assert config.sync.heartbeat_s is not None
    return Heartbeat(board, world.rank, range(world.size), config.sync.heartbeat_s)


def _master_ports() -> tuple[int, ...]:
    port = os.environ.get("MASTER_PORT", "")
    return (int(port),) if port.isdecimal() else ()


def _close_again(store: dist.Store | None, epoch: Epoch, rank: int) -> None:
    """The listeners of a new group."""
    if store is not None:
        close_listeners(store, f"groups {epoch.number}", epoch.members.index(rank), len(epoch.members))


def open_store(path: Path, timeout_s: float) -> dist.Store:
    """The store by which our own ranks find each other. Raises ConfigError if others could write or read it."""
    here = path.parent
    try:
        facts = here.lstat()
    except OSError as error:
        raise ConfigError(f"LOWCOMM_STORE = '{path}' is in no directory. Fix: unset it") from error
    private = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
    legal = "a file in a directory of this user with mode 0700"
    require(private, "LOWCOMM_STORE", str(path), legal, f"unset it, or chmod 700 {here}")
    if path.suffix == ".json":
        return RunStore(read_meeting(path), timeout_s)
    store = dist.FileStore(str(path), -1)  # -1: whoever made the directory removes it
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
