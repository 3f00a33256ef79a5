"""`lowcomm train RECIPE --store URL`: make the run exist, and start islands here that are members like all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from lowcomm.config import RunConfig
from lowcomm.data import build_data
from lowcomm.membership import DEFAULT_ISLANDS, World
from lowcomm.run.forked import Body, ask, may_fork
from lowcomm.run.host_checks import check_host
from lowcomm.run.ranks import follow_supervisor
from lowcomm.run.run_dir import available_cores
from lowcomm.store.objects import StoreError
from lowcomm.store.open import open_objects
from lowcomm.storerun.checks import check_store_run
from lowcomm.storerun.commands.join import join
from lowcomm.storerun.create_run import create_run, paths_of
from lowcomm.storerun.plan import shares_data, with_store
from lowcomm.storerun.supervise import Island, show_left_behind, supervise
from lowcomm.types import ConfigError


def start(config: RunConfig, guarded: Callable[[Body], int]) -> int:
    """Create the run, or take the one that is there, and start its islands; returns the exit code.

    guarded: tells an error in one line, and returns its exit code.
    """
    url, world = config.store, World.from_environment()
    assert url is not None
    if world.under_torchrun:
        raise ConfigError(
            "store is not allowed under torchrun: each island is started alone. Fix: `lowcomm train RECIPE --store "
            "URL` once, and `lowcomm join URL` on every other machine"
        )
    if config.transport == "simulated":
        raise ConfigError("store is not allowed with transport = 'simulated'. Fix: leave one of them out")
    islands = DEFAULT_ISLANDS if config.islands is None else config.islands
    config = dataclasses.replace(with_store(config, url), islands=islands)
    forks = may_fork()
    if forks:
        code, _ = ask(lambda: _create(config, url, islands, world), guarded)  # a store's client has threads
        if code != 0:
            return code
    else:
        _create(config, url, islands, world)
    places = [config.directory / f"island-{number}" for number in range(islands)]
    members = [island_here(config, url, number, islands, place) for number, place in enumerate(places)]

    def island(member: Island) -> int:
        follow_supervisor()
        return guarded(lambda: join(member.arguments[1:]))

    return show_left_behind(
        [m.directory for m in members], supervise(members, island if forks and may_fork() else None)
    )


def _create(config: RunConfig, url: str, islands: int, world: World) -> tuple[()]:
    check_store_run(config, islands)
    check_host(config, world, on_gpu=False)
    objects = open_objects(url, make=True)
    data = build_data(config.data, islands if shares_data(config) else 1, config.seed)
    try:
        run = create_run(objects, config, data, islands)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    print(f"run {config.name} ({run.run_id[:8]}) at {objects.where}; others join with: lowcomm join {url}", flush=True)
    return ()


def island_here(config: RunConfig, url: str, number: int, islands: int, directory: Path) -> Island:
    """The command of one island here, with what this machine sets."""
    name = f"island-{number}"
    threads = config.threads or max(1, available_cores() // islands)
    flags = ["--run-dir", str(directory), "--device", config.device, "--threads", str(threads)]
    flags += ["--data.cache-dir", str(config.data.cache_dir), "--log-every", str(config.log_every)]
    flags += [] if config.tensorboard else ["--no-tensorboard"]
    flags += [word for path in paths_of(config) for word in ("--allow", str(path))]
    flags += ["--quiet"] if number else []
    if (config.island.size or 1) > 1:
        flags += ["--island.size", str(config.island.size), "--island.kind", config.island.kind]
    return Island(name=name, directory=directory, arguments=["join", url, "--name", name, *flags], threads=threads)
