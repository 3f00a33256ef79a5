"""`lowcomm train` on one machine: one process per rank, and what is said of those that failed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence

from lowcomm.config import RunConfig
from lowcomm.run.ranks import Ended, run_ranks
from lowcomm.run.run_dir import available_cores, has_checkpoint, write_json


def launch(config: RunConfig, arguments: Sequence[str]) -> int:
    """Run `lowcomm ARGUMENTS` in one process per rank; returns the run's exit code.

    Everything stays on 127.0.0.1, and nothing listens for a rendezvous. Signals are passed on to the islands, which
    save and leave.
    """
    assert config.islands is not None and config.island.size is not None
    processes = config.islands * config.island.size
    threads = config.threads or max(1, available_cores() // processes)
    # inherited by the islands, before their torch is imported
    settings = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    settings["NCCL_RAS_ENABLE"] = "0"  # its service for queries listens, and asks nobody for a password
    ended = run_ranks(processes, arguments, settings)
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
