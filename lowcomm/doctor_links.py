"""The network side of `lowcomm doctor`: interfaces, the backend that would be used, measured links between ranks."""

from __future__ import annotations

import ipaddress
import os
import socket
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT_S = 600
_PINGS = 21
_WARM_PINGS = 5
_TRANSFERS = 3
_SLOW_TRANSFER_S = 2.0
_LABEL_BYTES = 160


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface: its IPv4 and IPv6 addresses; speed None: the driver does not say."""

    name: str
    addresses: tuple[str, ...]
    up: bool
    speed_mbit_per_s: int | None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A decision that a run would take, and the reason."""

    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Links:
    """Measured links. `[i][j]` is rank i to rank j; None on the diagonal."""

    labels: list[str]
    """By rank: "host|torch version|lowcomm version"."""
    latency_ms: list[list[float | None]]
    """One way: half the median round trip of 8 bytes; symmetric."""
    bandwidth_mb_per_s: list[list[float | None]]
    """10^6 bytes per second of one payload at a time, its acknowledgement included."""
    payload_bytes: int


def interfaces() -> list[Interface]:
    """Every interface of this machine, by psutil when it is there, else from the kernel."""
    try:
        import psutil
    except ModuleNotFoundError:
        return interfaces_without_psutil()
    stats = psutil.net_if_stats()
    found: list[Interface] = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        wanted = [e.address.split("%")[0] for e in entries if e.family in (socket.AF_INET, socket.AF_INET6)]
        stat = stats.get(name)
        speed = stat.speed if stat is not None and stat.speed > 0 else None
        up = stat is not None and stat.isup
        found.append(Interface(name=name, addresses=tuple(wanted), up=up, speed_mbit_per_s=speed))
    return found


def interfaces_without_psutil() -> list[Interface]:
    """IPv4 only, from the kernel of Linux; elsewhere the list is empty."""
    if not Path("/sys/class/net").is_dir():
        return []
    found: list[Interface] = []
    for _, name in socket.if_nameindex():
        folder = Path("/sys/class/net") / name
        address = _ipv4_address(name)
        try:
            flags = int((folder / "flags").read_text(), 16)
            speed = int((folder / "speed").read_text())
        except (OSError, ValueError):  # loopback and downed links have no speed
            flags, speed = 1 if address else 0, 0
        up, known = bool(flags & 1), speed if speed > 0 else None
        addresses = () if address is None else (address,)
        found.append(Interface(name=name, addresses=addresses, up=up, speed_mbit_per_s=known))
    return sorted(found, key=lambda interface: interface.name)


def _ipv4_address(name: str) -> str | None:
    import fcntl

    request = name.encode()[:15].ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock.fileno(), 0x8915, request)  # SIOCGIFADDR
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def choose_backend(local_world: int) -> Choice:
    """NCCL when every local rank can have a GPU of its own, else gloo."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return Choice(value="gloo", why="no CUDA device is visible")
    if not dist.is_nccl_available():
        return Choice(value="gloo", why="this torch is built without NCCL")
    if count < local_world:
        return Choice(value="gloo", why=f"{local_world} local ranks share {count} GPU(s); NCCL needs one each")
    return Choice(value="nccl", why=f"{count} GPU(s) for {local_world} local rank(s)")


def choose_interface(backend: str, master: str, known: list[Interface]) -> Choice:
    """The interface (address) that `backend` would use; a variable set by the user wins, as in torch."""
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    asked = os.environ.get(variable)
    if asked:
        return Choice(value=_describe(asked, known), why=f"{variable}={asked}")
    if backend == "nccl":
        address, why = _source_address(master), f"the route to {master}; set {variable} to choose another"
    else:
        # gloo binds to what the host name resolves to, not to the route to the rendezvous.
        address, why = _resolve(socket.gethostname()), f"the host name resolves to it; set {variable} to choose"
    if address is None:
        return Choice(value="unknown", why=f"no address found: set {variable}")
    names = [interface.name for interface in known if address in interface.addresses]
    return Choice(value=f"{names[0] if names else '?'} ({address})", why=why)


def _describe(asked: str, known: list[Interface]) -> str:
    # NCCL takes prefixes, "=" for exact names and "^" for exclusion: only plain names are looked up.
    by_name = {interface.name: interface for interface in known}
    parts: list[str] = []
    for name in asked.split(","):
        interface = by_name.get(name.strip().lstrip("="))
        address = interface.addresses[0] if interface is not None and interface.addresses else "no address"
        parts.append(f"{name.strip()} ({address})")
    return ", ".join(parts)


def _resolve(host: str) -> str | None:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _source_address(host: str) -> str | None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(address)  # UDP: picks a route, sends nothing
            return str(sock.getsockname()[0])
    except OSError:
        return None


def network_warnings(master: str, world: int, chosen: Choice, known: list[Interface]) -> list[str]:
    """What about the network would hurt a run: public addresses, a loopback bind, a name that fails."""
    notes: list[str] = []
    unsafe = "gloo and the TCPStore are neither encrypted nor authenticated"
    address = _resolve(master)
    if address is None:
        notes.append(f"MASTER_ADDR={master} does not resolve: give an address that every node can reach")
    elif is_public(address):
        notes.append(f"MASTER_ADDR={master} ({address}) is public and {unsafe}: use a private or tunnelled network")
    public = [f"{i.name} ({a})" for i in known if i.up for a in i.addresses if is_public(a)]
    if public:
        notes.append(f"{', '.join(public)} is public; {unsafe}, and it listens on every interface: firewall it")
    remote = world > 1 and address is not None and not ipaddress.ip_address(address).is_loopback
    if remote and "(127." in chosen.value:
        notes.append(f"this node would offer {chosen.value} to the others: set GLOO_SOCKET_IFNAME to a real interface")
    return notes


def is_public(address: str) -> bool:
    """Whether the address can be reached from the whole internet (not private, loopback or link-local)."""
    return ipaddress.ip_address(address.split("%")[0]).is_global


def measure_links(backend: str, label: str, payload_bytes: int) -> tuple[Links, int]:
    """Latency and bandwidth of every pair, one pair at a time so that pairs do not share a cable, and the rank.

    Collective: every rank calls it, with the torchrun environment set. A group that exists already is used.
    Raises what torch raises when a peer cannot be reached.
    """
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    own_group = not dist.is_initialized()
    if own_group:
        bound = device if device.type == "cuda" else None
        dist.init_process_group(backend, timeout=timedelta(seconds=_TIMEOUT_S), device_id=bound)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        table = torch.zeros(2, world, world, dtype=torch.float64)
        for low, high in combinations(range(world), 2):
            dist.barrier()
            if rank in (low, high):
                _measure_pair(table, (low, high), torch.zeros(payload_bytes, dtype=torch.uint8, device=device))
        table = table.to(device)
        dist.all_reduce(table)  # each entry has one writer: the sum is a copy
        labels = _gather_labels(label, device)
    finally:
        if own_group:
            dist.destroy_process_group()
    latency, bandwidth = _rows(table[0].cpu()), _rows(table[1].cpu())
    return Links(labels=labels, latency_ms=latency, bandwidth_mb_per_s=bandwidth, payload_bytes=payload_bytes), rank


def _rows(matrix: Tensor) -> list[list[float | None]]:
    values = matrix.tolist()
    return [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(values)]


def _measure_pair(table: Tensor, pair: tuple[int, int], payload: Tensor) -> None:
    """Fill this rank's entries of `table` (2, world, world): latency in ms, bandwidth in MB/s."""
    low, high = pair
    me = dist.get_rank()
    peer = high if me == low else low
    ping = torch.zeros(8, dtype=torch.uint8, device=payload.device)
    trips: list[float] = []
    for _ in range(_WARM_PINGS + _PINGS):
        trips.append(_round_trip(ping, ping, peer, first=me == low))
    if me == low:
        table[0, low, high] = table[0, high, low] = statistics.median(trips[_WARM_PINGS:]) * 500
    for source in pair:
        seconds = _transfer_s(payload, peer, sends=me == source)
        if me == source:
            table[1, me, peer] = payload.numel() / seconds / 1e6


def _transfer_s(payload: Tensor, peer: int, *, sends: bool) -> float:
    """Median seconds of a payload and its acknowledgement; on a slow link one transfer must do."""
    ack = torch.zeros(8, dtype=torch.uint8, device=payload.device)
    first = _round_trip(payload, ack, peer, first=sends)
    count = torch.tensor([0 if first > _SLOW_TRANSFER_S else _TRANSFERS], device=payload.device)
    _finish(dist.isend(count, peer) if sends else dist.irecv(count, peer), payload.device)
    again = [_round_trip(payload, ack, peer, first=sends) for _ in range(int(count.item()))]
    return statistics.median(again or [first])


def _round_trip(out: Tensor, back: Tensor, peer: int, *, first: bool) -> float:
    """Seconds for `out` to go from the `first` side to the other and `back` to return."""
    start = time.perf_counter()
    for tensor, sends in ((out, first), (back, not first)):
        _finish(dist.isend(tensor, peer) if sends else dist.irecv(tensor, peer), tensor.device)
    return time.perf_counter() - start


def _finish(work: dist.Work | None, device: torch.device) -> None:
    if work is not None:
        work.wait()
    if device.type == "cuda":  # wait() only orders the stream
        torch.cuda.synchronize(device)


def _gather_labels(label: str, device: torch.device) -> list[str]:
    # As bytes: the object collectives would pickle.
    data = label.encode()[:_LABEL_BYTES].ljust(_LABEL_BYTES, b"\0")
    mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    gathered = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return [bytes(t.cpu().tolist()).rstrip(b"\0").decode(errors="replace") for t in gathered]
