"""Checks of the process's surroundings: what torch would answer with a traceback is one line before anything starts."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
from pathlib import Path

from lowcomm.config import RunConfig
from lowcomm.membership import World
from lowcomm.types import ConfigError, require


def check_host(config: RunConfig, world: World, *, on_gpu: bool) -> None:
    """Raise ConfigError for a missing home directory or compiler, and for a rendezvous that can not come about.

    on_gpu: whether the models will be on a GPU.
    """
    check_home()
    if config.model.compile:
        check_compiler(on_gpu)
    if world.under_torchrun and not world.relayed and config.transport != "simulated":
        if world.store is None:
            check_master()
        check_interfaces()


def check_home() -> None:
    """Caches lie in the home directory, ours and those of the libraries."""
    try:
        Path.home()
    except RuntimeError as error:
        raise ConfigError(
            f"HOME is not set, and user {os.getuid()} has no home directory. Fix: export HOME with a directory that "
            "can be written"
        ) from error


def check_compiler(on_gpu: bool) -> None:
    """torch.compile needs a C++ compiler for code on the CPU and a C compiler for code on a GPU."""
    variable, usual = ("CC", ("gcc", "clang", "cc")) if on_gpu else ("CXX", ("g++", "clang++"))
    given = os.environ.get(variable)
    words = shlex.split(given) if given else []
    found = shutil.which(words[0]) if words else any(shutil.which(name) for name in usual[: 3 if on_gpu else 1])
    what = "C compiler" if on_gpu else "C++ compiler"
    legal = f"False, as no {what} is here ({f'{variable} = {given}' if given else ' or '.join(usual)})"
    fix = f"install {usual[0]}, set {variable} to another one, or leave out --model.compile"
    require(bool(found), "model.compile", True, legal, fix)
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        try:
            getpass.getuser()
        except (KeyError, OSError) as error:
            raise ConfigError(
                f"model.compile = True is not allowed: False, as user {os.getuid()} has no name for torch's cache. "
                "Fix: set TORCHINDUCTOR_CACHE_DIR"
            ) from error


def check_master() -> None:
    """MASTER_ADDR and MASTER_PORT say where rank 0 is waited for."""
    fix = "start with torchrun, or set MASTER_ADDR and MASTER_PORT; for one machine, unset RANK and WORLD_SIZE"
    require(bool(os.environ.get("MASTER_ADDR")), "MASTER_ADDR", os.environ.get("MASTER_ADDR"), "rank 0's address", fix)
    port = os.environ.get("MASTER_PORT")
    ok = port is not None and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
    require(ok, "MASTER_PORT", port, "a port from 1 to 65535", fix)


def check_interfaces() -> None:
    """GLOO_SOCKET_IFNAME names interfaces of this machine."""
    given = os.environ.get("GLOO_SOCKET_IFNAME")
    if given is None:
        return
    known = [name for _, name in socket.if_nameindex()]
    ok = bool(given) and all(name in known for name in given.split(","))
    require(
        ok, "GLOO_SOCKET_IFNAME", given, f"interfaces of this machine ({', '.join(known)})", "name one, or unset it"
    )
