"""The network of one machine, for `lowcomm doctor`: interfaces, the backend that would be used, what is unsafe."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist


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
