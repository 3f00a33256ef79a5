"""The state of a LocalSGD as named tensors and JSON values, for checkpoints."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowcomm import optimizer_state
from lowcomm.checkpoint import Part
from lowcomm.round.flight import Flight
from lowcomm.round.gradients import read_back
from lowcomm.schedule import Pace
from lowcomm.types import CheckpointError, Round

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


def global_part(sync: LocalSGD) -> Part:
    """What is equal on every island: global weights, outer state, round."""
    read_back(sync)
    tensors: dict[str, Tensor] = {}
    outer: list[dict[str, Any]] = []
    for i, (fragment, optimizer) in enumerate(zip(sync.fragments, sync.outers, strict=True)):
        tensors[f"weights.{i}"] = fragment.weights[: fragment.numel]  # padding depends on the number of islands
        state, meta = optimizer_state.to_tensors(optimizer, f"outer.{i}")
        tensors.update(state)
        outer.append(meta)
    tensors |= sync.corrections.global_tensors([f.numel for f in sync.fragments])
    fragments = [list(f.names) for f in sync.fragments]
    pace = dataclasses.asdict(sync.pace)
    ranks = {"ranks": sync.ranks} if sync.ranks else {}
    return tensors, {"round": sync.round, "outer": outer, "fragments": fragments, "pace": pace, **ranks}


def load_global(sync: LocalSGD, part: Part) -> None:
    """Put back what `global_part` gave. Raises CheckpointError for another model."""
    tensors, values = part
    if values["fragments"] != [list(f.names) for f in sync.fragments]:
        raise CheckpointError("the checkpoint is of a model with other parameters or fragments")
    for i, (fragment, optimizer) in enumerate(zip(sync.fragments, sync.outers, strict=True)):
        fragment.weights[: fragment.numel].copy_(tensors[f"weights.{i}"])
        optimizer_state.from_tensors(optimizer, f"outer.{i}", tensors, values["outer"][i])
    sync.corrections.load_global(tensors)
    sync.round, sync.pace, sync.ranks = values["round"], Pace(**values["pace"]), values.get("ranks", sync.ranks)


def island_part(sync: LocalSGD, local: int) -> Part:
    """What belongs to one local island: weights, buffers, inner and codec state, counters."""
    replica = sync.replicas[local]
    tensors: dict[str, Tensor] = {f"model.{n}": p.detach() for n, p in replica.held.items()}
    tensors.update({f"buffer.{n}": b for n, b in replica.buffers.items()})
    inner, meta = optimizer_state.to_tensors(replica.inner, "inner")
    tensors.update(inner)
    for i, state in enumerate(sync.codec_states[local]):
        tensors.update({f"codec.{i}.{key}": t for key, t in state.items()})
    for i, flight in sync.flights.items():
        tensors[f"flight.{i}"] = flight.deltas[local][: sync.fragments[i].numel]
    tensors |= sync.corrections.island_tensors(local, [f.numel for f in sync.fragments])
    # an exchange on its way is done again after a resume: its bytes are counted then
    counted = [f.bytes_before[local] for f in sync.flights.values()]
    sent, received = counted[0] if counted else (sync.transport.sent_bytes[local], sync.transport.received_bytes[local])
    return tensors, {
        "flights": [_flight_values(f, local) for f in sync.flights.values()],
        "unverified": _rounds(sync.unverified),
        "inner": meta,
        "step": sync.step,
        "pending": list(sync.pending),
        "must_rebase": sync.must_rebase,
        "gradient_steps": sync.gradient_steps,
        "tokens": replica.tokens,
        "synced_tokens": {str(k): v for k, v in replica.synced_tokens.items()},
        "bytes_sent": sent,
        "bytes_received": received,
        "sync_s": sync.sync_s,
        "blocked_s": sync.blocked_s,
        "privacy": sync.guard.state(local),
        **sync.corrections.values(local),
    }


@torch.no_grad()
def load_island(sync: LocalSGD, local: int, part: Part) -> None:
    """Put back what `island_part` gave.

    A signal finds processes at different steps of one round. Here, with several islands in one process, those that are
    ahead then wait, and an exchange that one of them was waiting in comes when the schedule asks for it.
    """
    tensors, values = part
    replica = sync.replicas[local]
    for name, p in replica.held.items():
        p.copy_(tensors[f"model.{name}"])
    for fragment in sync.fragments:
        replica.written(fragment)
    for name, b in replica.buffers.items():
        b.copy_(tensors[f"buffer.{name}"])
    optimizer_state.from_tensors(replica.inner, "inner", tensors, values["inner"])
    for i, state in enumerate(sync.codec_states[local]):
        prefix = f"codec.{i}."
        saved = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        sync.codec_states[local][i] = {k: t.to(state[k].device if k in state else "cpu") for k, t in saved.items()}
    replica.steps = values["step"]
    sync.step = min(r.steps for r in sync.replicas)
    together = all(r.steps == sync.step for r in sync.replicas)
    sync.pending = tuple(values["pending"]) if together else ()
    sync.must_rebase = values["must_rebase"]
    sync.gradient_steps = values["gradient_steps"]
    replica.tokens = values["tokens"]
    replica.synced_tokens = {int(k): v for k, v in values["synced_tokens"].items()}
    sync.transport.sent_bytes[local] = values["bytes_sent"]
    sync.transport.received_bytes[local] = values["bytes_received"]
    sync.guard.load(local, values["privacy"])
    sync.corrections.load_island(local, tensors, values.get("objective_steps", 0))
    sync.sync_s, sync.blocked_s = values["sync_s"], values["blocked_s"]
    sync.unverified = _landed(sync, values["unverified"])
    _load_flights(sync, local, tensors, values["flights"])


def _flight_values(flight: Flight, local: int) -> dict[str, Any]:
    return {
        "fragment": flight.fragment,
        "step": flight.round.step,
        "norm": flight.norms[local],
        "tokens": flight.tokens[local],
        "unsynced": flight.unsynced[local],
        "verifies": _rounds(flight.to_verify),
    }


def _rounds(landed: dict[int, tuple[bytes, Round]]) -> list[list[int]]:
    return [[index, then.index, then.step] for index, (_, then) in landed.items()]


def _landed(sync: LocalSGD, rounds: list[list[int]]) -> dict[int, tuple[bytes, Round]]:
    return {
        index: (sync.fragments[index].digest(), Round(index=number, step=step, fragments=(index,), seed=0))
        for index, number, step in rounds
    }


def _load_flights(sync: LocalSGD, local: int, tensors: dict[str, Tensor], saved: list[dict[str, Any]]) -> None:
    """Flights of the first local island, to which the others add theirs; `relaunch` starts them."""
    if local == 0:
        sync.flights.clear()
    for values in saved:
        index = values["fragment"]
        fragment = sync.fragments[index]
        delta = fragment.scratch(local).zero_()
        delta[: fragment.numel].copy_(tensors[f"flight.{index}"])
        if index not in sync.flights:
            then = dataclasses.replace(sync.round_of(index), step=values["step"])
            landed = _landed(sync, values["verifies"])
            sync.flights[index] = Flight(
                fragment=index,
                round=then,
                deltas=[],
                norms=[],
                tokens=[],
                unsynced=[],
                bytes_before=[],
                delta_needed=True,
                to_verify=landed,
            )
        flight = sync.flights[index]
        flight.deltas.append(delta)
        flight.norms.append(values["norm"])
        flight.tokens.append(values["tokens"])
        flight.unsynced.append(values["unsynced"])
        flight.bytes_before.append((sync.transport.sent_bytes[local], sync.transport.received_bytes[local]))
