"""`lowcomm train` on one machine: runs torchrun's agent here, with one worker process per island.

The agent's own launcher API is used, so that a stop or a failure ends in our message and not in its traceback.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lowcomm.config import RunConfig
from lowcomm.run_dir import available_cores


def launch(config: RunConfig, arguments: Sequence[str]) -> int:
    """Run `lowcomm ARGUMENTS` in one process per island under torchrun's agent; returns the run's exit code.

    Everything stays on 127.0.0.1. SIGTERM and Ctrl-C are passed on to the islands, which save and leave.
    """
    assert config.islands is not None
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    threads = config.threads or max(1, available_cores() // config.islands)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited by the islands, before their torch is imported
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.islands,
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
        codes = {failure.exitcode for failure in error.failures.values()}
        return 3 if _status(config) == "stopped" else 2 if codes == {2} else 1
    except SignalException:
        return 3 if _status(config) == "stopped" else 1
    return 0


def _status(config: RunConfig) -> str | None:
    try:
        return json.loads((config.directory / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return None
