"""The machine as far as bits depend on it: device, vector unit, threads, version of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lowcomm.types import ConfigError

BITS = ("device", "torch")
"""Whoever differs in one of these can't be expected to get the same bits."""


def machine_of(device: torch.device, threads: int) -> dict[str, Any]:
    """This machine, for the head of a transcript."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"device": f"{device.type} {name}", "torch": torch.__version__, "threads": threads}


def check_same(machines: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError unless all machines, by what they are called, are of one kind."""
    (first, ours), *others = machines.items()
    for name, theirs in others:
        for key in BITS:
            if ours.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{key} of {first} is {ours.get(key)!r}, of {name} {theirs.get(key)!r}: their bits need not agree "
                    "where both are honest. Fix: compare on one kind of device, with one version of torch"
                )
