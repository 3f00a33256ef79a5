"""`lowcomm train` on one machine: one process per rank, and what is said of those that failed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence

from lowcomm.config import RunConfig
from lowcomm.run.ranks import run_ranks
from lowcomm.run.run_dir import available_cores, write_json


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
    ended = run_ranks(processes, arguments, settings)
    if ended.signal is not None:
        return {"stopped": 3, "done": 0, "budget spent": 0}.get(_status(config) or "", 1)
    return _after_failure(config, ended.failed) if ended.failed else 0


def _after_failure(config: RunConfig, codes: Mapping[int, int]) -> int:
    """The run's exit code for the islands' exit codes before the others were asked to stop."""
    if set(codes.values()) <= {2}:
        return 2
    if set(codes.values()) <= {3}:
        return 3
    for island, code in codes.items():
        if code < 0:
            print(
                f"lowcomm: error: island {island} was killed by {signal.Signals(-code).name}: the run stops. "
                "Earlier checkpoints are intact. Fix: continue with --resume",
                file=sys.stderr,
            )
    if _status(config) == "stopped":  # written by an island that only saw the signal that asked it to stop
        path = config.directory / "summary.json"
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "status": "failed"})
    return 1


def _status(config: RunConfig) -> str | None:
    try:
        return json.loads((config.directory / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return None
