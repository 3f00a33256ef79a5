"""`lowcomm join URL`: become a member of a run, at any time, with nothing but its address."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from lowcomm.config import RunConfig
from lowcomm.flags.parse import parse_flags
from lowcomm.membership import World
from lowcomm.run.ranks import SUPERVISOR, run_ranks
from lowcomm.run.run_dir import available_cores
from lowcomm.storerun.build import build_hands, build_member, preflight
from lowcomm.storerun.checks import check_island
from lowcomm.storerun.joining import Opened, check_own, check_paths, check_writable, described, open_run
from lowcomm.storerun.living import live, serve
from lowcomm.storerun.names import check_name, default_name
from lowcomm.storerun.supervise import show_left_behind
from lowcomm.types import ConfigError


def join(arguments: Sequence[str]) -> int:
    """Train as a member until the run is done; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="lowcomm join",
        description="Join a run that lives in a store. Flags of this machine may follow: --run-dir, --device, "
        "--threads, --island.size, --checkpoint.*, --eval.*, and where files lie here.",
    )
    parser.add_argument("url", metavar="URL", help="a directory, s3://, gs:// or az://")
    parser.add_argument("--name", default=None, help="label of this member (default: the host's name)")
    parser.add_argument("--allow", action="append", default=[], type=Path, metavar="DIR", help="the run may read it")
    parser.add_argument("--quiet", action="store_true", help="nothing on the screen but warnings")
    options, flags = parser.parse_known_args(list(arguments))
    name = check_name(options.name) if options.name is not None else default_name()
    opened = open_run(options.url)
    config = parse_flags(opened.config, flags, f"lowcomm join {options.url}")
    check_own(opened.config, config)
    check_island(config)
    check_paths(opened.config, config, options.allow)
    check_writable(opened)
    if config.run_dir is None:
        config = dataclasses.replace(config, run_dir=Path("runs") / config.name / name)
    several = (config.island.size or 1) > 1 and not World.from_environment().under_torchrun
    if not options.quiet and not several and os.environ.get("RANK", "0") == "0":
        print("\n".join(described(opened, config)), flush=True)
    return _join(opened, config, arguments, name, options.quiet)


def _join(
    opened: Opened,
    config: RunConfig,
    arguments: Sequence[str],
    name: str,
    quiet: bool,
) -> int:
    world = World.from_environment()
    if (config.island.size or 1) > 1 and not world.under_torchrun:
        code = _ranks(config, arguments)
        return code if quiet or SUPERVISOR in os.environ else show_left_behind([config.directory], code)
    if (config.island.size or 1) != world.size:
        raise ConfigError(
            f"island.size = {config.island.size} is not allowed: {world.size} processes were started. Fix: leave it out"
        )
    data = preflight(opened, config, world)
    hands = build_hands(opened, config, data, world, shown=not quiet and world.rank == 0)
    if world.rank:
        return serve(hands)
    code = live(build_member(opened, config, hands, name=name))
    return code if quiet or world.rank or SUPERVISOR in os.environ else show_left_behind([config.directory], code)


def _ranks(config: RunConfig, arguments: Sequence[str]) -> int:
    """The same command in one process per rank of the island, on this machine."""
    size = config.island.size or 1
    threads = config.threads or max(1, available_cores() // size)
    settings = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    return run_ranks(size, ["join", *arguments], settings).code
