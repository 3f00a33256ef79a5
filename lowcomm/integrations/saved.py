"""The state of a sync in another trainer's checkpoint directory: safetensors and JSON, one directory per rank.

    DIRECTORY/STEP/island-RANK/{island,global}.safetensors  {island,global}.json  manifest.json

STEP is the inner step in six digits, RANK the rank in the world (with islands of one rank: the island). Every rank
writes its own, global part included: sites need not share a file system. See lowcomm.checkpoint for the manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from lowcomm import checkpoint
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.state import SyncState
from lowcomm.sync.overlap import relaunch
from lowcomm.transport.base import texts_of
from lowcomm.types import CheckpointError

Facts = Mapping[str, str | int]


def rank() -> int:
    """This process's rank in the world, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def save(state: SyncState, directory: Path, facts: Facts) -> None:
    """Write this rank's state; every rank calls it at the same step. Raises CheckpointError (disk full, ...).

    facts: settings that a run which goes on from here must have.
    """
    state.worker.wait()
    own = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.uint8)
    session = bytes(state.transport.gather([own])[0].numpy()).hex()
    tensors, values = island_part(state, 0)
    parts: dict[str, checkpoint.Part] = {"island": (tensors, {**values, "facts": dict(facts)})}
    parts["global"] = global_part(state)
    checkpoint.save(directory, f"{state.step:06d}", rank(), parts, session)


def load(state: SyncState, directory: Path, step: int, facts: Facts) -> None:
    """Put back the state of inner step `step`; every rank calls it. The models then hold their islands' own weights.

    Raises CheckpointError on every rank if one has no whole part, or the parts were not saved together.
    """
    name, problem, parts = f"{step:06d}", "", {}
    try:
        parts = checkpoint.load(directory, name, rank())
        problem = _difference(parts["island"][1]["facts"], facts)
    except CheckpointError as error:
        problem = str(error)
    session = checkpoint.verified(directory, rank()).get(name, "")
    text = json.dumps([problem, session]).encode()
    rows = state.transport.gather_sized([torch.frombuffer(bytearray(text), dtype=torch.uint8)])
    found = texts_of(rows)
    for island, (theirs, _) in enumerate(found):
        if theirs:
            raise CheckpointError(f"island {island} cannot go on from inner step {step}: {theirs}")
    if len({session for _, session in found}) > 1:
        raise CheckpointError(f"the parts of inner step {step} in {directory} were not saved together")
    load_global(state, parts["global"])
    load_island(state, 0, parts["island"])
    relaunch(state)


def _difference(stored: Facts, now: Facts) -> str:
    for key, value in now.items():
        if stored.get(key) != value:
            return f"it was saved with {key} = {stored.get(key)!r}, now it is {value!r}. Fix: resume with the same"
    return ""
