"""The transport of a loop that names none."""

from __future__ import annotations

import os

import torch.distributed as dist

from lowcomm.transport.base import Transport
from lowcomm.transport.collective import Collective
from lowcomm.transport.simulated import Simulated
from lowcomm.types import ConfigError

STARTERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Where torchrun and others, and mpirun, say how many processes they have started."""


def default_transport(models: int) -> Transport:
    """The default process group with one model, else as many simulated islands as there are models.

    Raises ConfigError for one of several processes that would be left alone: no group, or several models in each.
    """
    grouped = dist.is_available() and dist.is_initialized()
    if models == 1 and grouped:
        return Collective()
    if grouped and dist.get_world_size() > 1:
        raise ConfigError(
            f"model = {models} models is not allowed in each of {dist.get_world_size()} processes: they would not hear "
            f"of each other. Fix: one model, or transport=lowcomm.transport.Simulated({models})"
        )
    for variable in STARTERS:
        started = os.environ.get(variable, "1")
        if not grouped and started.isdecimal() and int(started) > 1:
            raise ConfigError(
                f"{variable} = {started} processes were started, but there is no process group: each trains alone. "
                "Fix: torch.distributed.init_process_group() before this, or, to train alone, "
                f"transport=lowcomm.transport.Simulated({models})"
            )
    return Simulated(models)
