"""The transport of a loop that names none."""

from __future__ import annotations

import torch.distributed as dist

from lowcomm.transport.base import Transport
from lowcomm.transport.collective import Collective
from lowcomm.transport.simulated import Simulated


def default_transport(models: int) -> Transport:
    """The default process group with one model, else as many simulated islands as there are models."""
    if models == 1 and dist.is_available() and dist.is_initialized():
        return Collective()
    return Simulated(models)
