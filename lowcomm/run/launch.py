"""`lowcomm train` on one machine: runs torchrun's agent here, with one worker process per island.

The agent's own launcher API is used, so that a stop or a failure ends in our message and not in its traceback.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lowcomm.config import RunConfig
from lowcomm.run.run_dir import available_cores, has_checkpoint, write_json


def launch(config: RunConfig, arguments: Sequence[str]) -> int:
    """Run `lowcomm ARGUMENTS` in one process per rank under torchrun's agent; returns the run's exit code.

    Everything stays on 127.0.0.1. SIGTERM and Ctrl-C are passed on to the islands, which save and leave.
    """
    assert config.islands is not None and config.island.size is not None
    processes = config.islands * config.island.size
    for name in list(logging.root.manager.loggerDict):  # each logger of the agent has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    threads = config.threads or max(1, available_cores() // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited by the islands, before their torch is imported
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=60,
    )
    try:
        elastic_launch(agent, sys.executable)("-u", "-m", "lowcomm.cli", *arguments)
    except ChildFailedError as error:
        return _after_failure(config, {rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException:
        return {"stopped": 3, "done": 0, "budget spent": 0}.get(_status(config) or "", 1)
    return 0


def _after_failure(config: RunConfig, codes: Mapping[int, int]) -> int:
    """The run's exit code for the islands' exit codes that the agent saw before it stopped the others."""
    if set(codes.values()) <= {2}:
        return 2
    if set(codes.values()) <= {3}:
        return 3
    for island, code in codes.items():
        if code < 0:
            print(
                f"lowcomm: error: island {island} was killed by {signal.Signals(-code).name}: the run stops. "
                f"{_what_is_left(config)}. Fix: pass --resume auto",
                file=sys.stderr,
            )
    if _status(config) == "stopped":  # written by an island that only saw the agent's signal
        path = config.directory / "summary.json"
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "status": "failed"})
    return 1


def _what_is_left(config: RunConfig) -> str:
    if has_checkpoint(config.directory):
        return "Earlier checkpoints are intact"
    return "There is no checkpoint yet, so that it starts over"


def _status(config: RunConfig) -> str | None:
    try:
        return json.loads((config.directory / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return None
