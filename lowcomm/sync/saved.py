"""Keeps the state of a sync on disk: safetensors and JSON, one directory per island and rank.

    DIRECTORY/STEP/island-RANK/{island,global}.safetensors  {island,global}.json  manifest.json

STEP is the inner step in six digits, RANK the rank in the world (with islands of one rank: the island). Every rank
writes its own, global part included: sites need not share a file system. See lowcomm.checkpoint for the manifest.

Saving exchanges nothing, so that a rank which saves alone stops nobody. Parts belong together if their islands had the
same global weights after the same step: that, hashed, is the session in their manifests. With anchors of their own
(gossip, FedBuff) it is the step and the attempt.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from lowcomm import checkpoint
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.state import SyncState
from lowcomm.sync.overlap import relaunch
from lowcomm.transport.base import texts_of
from lowcomm.types import CheckpointError, require

Facts = Mapping[str, str | int]


def numbers(state: SyncState) -> Sequence[int]:
    """Number of each local island's directory: this process's rank in the world, or the island's own."""
    if len(state.replicas) > 1:
        return state.transport.local
    return [dist.get_rank()] if dist.is_available() and dist.is_initialized() else state.transport.local


def save(state: SyncState, directory: Path, facts: Facts) -> Path:
    """Write the local islands' state; every rank calls it at the same step. Raises CheckpointError (disk full, ...).

    facts: settings that a run which goes on from here must have.
    """
    state.worker.wait()
    state.read_back()
    session = _session(state)
    for i, number in enumerate(numbers(state)):
        tensors, values = island_part(state, i)
        parts: dict[str, checkpoint.Part] = {"island": (tensors, {**values, "facts": dict(facts)})}
        parts["global"] = global_part(state)
        checkpoint.save(directory, f"{state.step:06d}", number, parts, session)
    return directory / f"{state.step:06d}"


def _session(state: SyncState) -> str:
    """What the parts of one save have in common: islands with anchors of their own agree on no weights and round."""
    if state.exchange.anchors == "own":
        whole = f"{state.attempt} {state.step}".encode()
    else:
        digests = b"".join(a.digest() for shared in state.anchors for a in shared[:1])
        whole = digests + f"{state.round} {state.step}".encode()
    return hashlib.blake2b(whole, digest_size=8).hexdigest()


def load(state: SyncState, directory: Path, step: int, facts: Facts) -> None:
    """Put back the state of inner step `step`; every rank calls it. The models then hold their islands' own weights.

    Raises CheckpointError on every rank if one has no whole part, or the parts were not saved together.
    """
    name, own, said = f"{step:06d}", list[dict[str, checkpoint.Part]](), list[list[str]]()
    for number in numbers(state):
        parts, problem = {}, ""
        try:
            parts = checkpoint.load(directory, name, number)
            problem = _difference(parts["island"][1].get("facts", {}), facts)
        except CheckpointError as error:
            problem = str(error)
        own.append(parts)
        said.append([problem, checkpoint.verified(directory, number).get(name, "")])
    found = texts_of(state.transport.gather_sized([_row(s) for s in said]))
    for island, (theirs, _) in enumerate(found):
        if theirs:
            raise CheckpointError(f"island {island} cannot go on from inner step {step}: {theirs}")
    if len({session for _, session in found}) > 1:
        raise CheckpointError(f"the parts of inner step {step} in {directory} were not saved together")
    load_global(state, own[0]["global"])
    for i, parts in enumerate(own):
        load_island(state, i, parts["island"])
    relaunch(state)


def save_loop(state: SyncState, path: Path | str, keep: int) -> Path:
    """`LocalSGD.save`."""
    directory = _directory(path)
    require(keep >= 1, "keep", keep, "1 or more", "2 leaves one that is whole if the newest is torn")
    made = save(state, directory, _settings(state))
    for name in checkpoint.names(directory)[: -keep or None]:
        checkpoint.remove(directory, name, numbers(state))
    return made


def load_loop(state: SyncState, path: Path | str) -> int:
    """`LocalSGD.load`."""
    directory = _directory(path)
    whole = [checkpoint.verified(directory, number) for number in numbers(state)]
    tables = texts_of(state.transport.gather_sized([_row(w) for w in whole]))
    if not any(tables):
        problems = [checkpoint.newest_problem(directory, number) or "" for number in numbers(state)]
        said = texts_of(state.transport.gather_sized([_row(p) for p in problems]))
        damaged = next((p for p in said if p), None)
        if damaged is None:
            return 0
        raise CheckpointError(f"{damaged}, and nothing else was saved. Fix: give a new directory to start anew")
    common = [name for name, session in tables[0].items() if all(t.get(name) == session for t in tables)]
    if not common:
        have = "; ".join(f"island {k} has {', '.join(t) or 'none'}" for k, t in enumerate(tables))
        raise CheckpointError(
            f"no state in {directory} is whole on every island ({have}). Fix: call save on every island after the same "
            "step, or give a new directory to start anew"
        )
    step = int(common[-1])
    load(state, directory, step, _settings(state))
    return step


def _directory(path: object) -> Path:
    ok = isinstance(path, str | os.PathLike) and not Path(path).is_file()
    require(ok, "path", path, "a directory, or none yet", "give the name of a directory")
    return Path(str(path))


def _settings(state: SyncState) -> Facts:
    """All that decides a run's bits, by name; a part that is left out (None) is not named."""
    spec, clients = state.spec, state.spec.clients
    parts = {name: repr(getattr(spec, name)) for name in ("outer", "codec", "schedule", "aggregator", "privacy")}
    chosen = {name: getattr(clients, name) for name in ("sampling", "local_steps", "objective", "secure")}
    chosen["fresh_inner"] = clients.fresh_inner or None
    chosen["exchange"] = spec.exchange
    chosen["buffers"] = sorted(spec.buffers.items()) or None
    parts |= {name: repr(part) for name, part in chosen.items() if part is not None}
    return {"every": spec.every, "seed": spec.seed, "islands": state.transport.islands, **parts}


def _row(said: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)


def _difference(stored: Facts, now: Facts) -> str:
    for key in (*now, *(key for key in stored if key not in now)):
        was, value = stored.get(key), now.get(key)
        if was != value:
            return f"it was saved with {key} = {was!r}, now it is {value!r}. Fix: resume with the same"
    return ""
