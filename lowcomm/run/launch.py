"""`lowcomm train` on one machine: one process per rank, and what is said of those that failed."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from lowcomm.config import RunConfig
from lowcomm.membership import World
from lowcomm.model import Full, Scratch
from lowcomm.run.forked import Body, ask, may_fork
from lowcomm.run.ranks import Ended, follow_supervisor, run_ranks
from lowcomm.run.run_dir import available_cores, has_checkpoint, write_json


class Sizes(NamedTuple):
    """Of a run, once its configuration is checked."""

    islands: int
    size: int
    """Ranks of an island."""


def sizes_of(config: RunConfig, world: World) -> Sizes:
    """Check all that can be before a process starts. Raises ConfigError."""
    from lowcomm.run.assembly import build_models, preflight

    checked, data = preflight(config, world)
    assert checked.islands is not None and checked.island.size is not None
    sizes = Sizes(checked.islands, checked.island.size)
    model = checked.model
    plain = isinstance(model.origin, Scratch) and isinstance(model.tuning, Full)
    if sizes != (1, 1) and (model.directory is not None or not plain):
        build_models(checked, data, 1, torch.device("cpu"))
    return sizes


def train_apart(
    config: RunConfig,
    world: World,
    arguments: Sequence[str],
    train: Callable[[RunConfig], int],
    guarded: Callable[[Body], int],
) -> int:
    """Check the configuration, then train in a process per rank, or in this one where one is enough.

    arguments: of `lowcomm`, for ranks that are started anew; train: what they do; guarded: tells an error in one line,
    and returns its exit code. Returns the run's.
    """
    forks = may_fork()
    if forks:
        code, found = ask(lambda: sizes_of(config, world), guarded)
        if code != 0:
            return code
        sizes = Sizes(*found)
    else:
        sizes = sizes_of(config, world)
    if sizes == (1, 1):
        return train(config)
    island = dataclasses.replace(config.island, size=sizes.size)
    checked = dataclasses.replace(config, islands=sizes.islands, island=island)

    def rank() -> int:
        follow_supervisor()
        return guarded(lambda: train(checked))

    flags = ["--islands", str(sizes.islands), "--island.size", str(sizes.size)]
    return launch(checked, [*arguments, *flags], rank if forks and may_fork() else None)


def launch(config: RunConfig, arguments: Sequence[str], body: Body | None = None) -> int:
    """Run `lowcomm ARGUMENTS` in one process per rank; returns the run's exit code.

    Everything stays on 127.0.0.1, and nothing listens for a rendezvous. Signals are passed on to the islands, which
    save and leave. body: what `lowcomm ARGUMENTS` does, where this process may be copied instead of started anew.
    """
    assert config.islands is not None and config.island.size is not None
    processes = config.islands * config.island.size
    threads = config.threads or max(1, available_cores() // processes)
    # inherited by the islands
    settings = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    settings["NCCL_RAS_ENABLE"] = "0"  # its service for queries listens, and asks nobody for a password
    ended = run_ranks(processes, arguments, settings, None, body)
    _tell(config, ended)
    return ended.code


def _tell(config: RunConfig, ended: Ended) -> None:
    """Name the ranks that a signal killed before the others were asked to stop, and put the summary right."""
    size = config.island.size or 1
    others = [code for rank, code in ended.codes.items() if rank not in ended.lost]
    went_on = ended.signal is None and not ended.failed and bool(others) and set(others) <= {0}
    for rank, code in {**ended.lost, **ended.failed}.items():
        if code < 0:
            who = f"island {rank}" if size == 1 else f"rank {rank} (island {rank // size})"
            hint = " (by hand, or as memory ran out)" if code == -signal.SIGKILL else ""
            killed = f"{who} was killed by {signal.Signals(-code).name}{hint}"
            if went_on:
                print(f"lowcomm: warning: {killed}: the run went on without it", file=sys.stderr)
                continue
            print(
                f"lowcomm: error: {killed}: the run stops. {_what_is_left(config)}. Fix: pass --resume auto",
                file=sys.stderr,
            )
    known = {**ended.lost, **ended.failed}
    unsaved = [rank for rank, code in ended.codes.items() if code not in (0, 3) and rank not in known]
    if ended.signal is not None and unsaved:
        cause = signal.Signals(ended.signal).name
        print(
            f"lowcomm: error: {cause} came, and ranks {unsaved} ended without having saved. {_what_is_left(config)}. "
            "Fix: pass --resume auto",
            file=sys.stderr,
        )
    path = config.directory / "summary.json"
    if ended.code == 1 and _status(config) == "stopped":  # by an island that saved, which not all did
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "status": "failed"})


def _what_is_left(config: RunConfig) -> str:
    if has_checkpoint(config.directory):
        return "Earlier checkpoints are intact"
    return "There is no checkpoint yet, so that it starts over"


def _status(config: RunConfig) -> str | None:
    try:
        return json.loads((config.directory / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return None
