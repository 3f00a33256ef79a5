"""The state of a sync as named tensors and JSON values, for checkpoints: counters here, then every part's own.

What is equal on all islands goes into the global part, what belongs to one into an island part.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lowcomm import optimizer_state
from lowcomm.schedule import Pace
from lowcomm.state.anchor import Anchor
from lowcomm.state.outgoing import InFlight, Outgoing
from lowcomm.state.state import SyncState
from lowcomm.types import CheckpointError, Part, Round

SHARED = "shared_buffer."
"""Beginning of the name of a buffer that islands share, in the global part."""


def global_part(state: SyncState) -> Part:
    """What is equal on every island: shared anchors with their outer optimizers, round."""
    state.read_back()
    tensors: dict[str, Tensor] = {}
    outer: list[dict[str, Any]] = []
    for i, anchors in enumerate(state.anchors):
        if state.exchange.anchors == "shared":
            named, meta = _anchor_part(anchors[0], f"weights.{i}", f"outer.{i}")
            tensors.update(named)
            outer.append(meta)
        tensors.update({f"rule.{i}.{key}": t for key, t in state.rule_states[i].items()})
    if state.replicas[0].shares_model:
        tensors.update({f"{SHARED}{n}": b for n, b in state.replicas[0].buffers.items()})
    values: dict[str, Any] = {
        "round": state.round,
        "outer": outer,
        "fragments": [list(f.names) for f in state.fragments],
        "pace": dataclasses.asdict(state.pace),
        "run": f"{state.run_id:016x}",
        "norms": [history.rounds for history in state.norms],
    }
    for part in (*state.hooks, state.exchange):
        more, meta = part.global_part()
        tensors.update(more)
        values.update(meta)
    return tensors, values


def load_global(state: SyncState, part: Part) -> None:
    """Put back what `global_part` gave. Raises CheckpointError for another model."""
    tensors, values = part
    if values["fragments"] != [list(f.names) for f in state.fragments]:
        raise CheckpointError("the checkpoint is of a model with other parameters or fragments")
    for i, anchors in enumerate(state.anchors):
        if state.exchange.anchors == "shared":
            _load_anchor(anchors[0], f"weights.{i}", f"outer.{i}", tensors, values["outer"][i])
        state.rule_states[i] = _under(f"rule.{i}.", tensors)
    for replica in state.replicas:
        for name, b in replica.buffers.items():
            if (saved := tensors.get(SHARED + name)) is not None:
                b.copy_(saved)
        if replica.shares_model:
            break
    if state.replicas[0].shares_model:
        for i in range(len(state.fragments)):
            state.write_back(i, range(len(state.replicas)))
    # checkpoints of older versions have no run: the one that the handshake just agreed on stays
    state.run_id = int(values.get("run", f"{state.run_id:016x}"), 16)
    for history, rounds in zip(state.norms, values.get("norms", [[]] * len(state.norms)), strict=True):
        history.rounds = rounds if history.bound is not None else []
    state.round, state.pace = values["round"], Pace(**values["pace"])
    for hook in (*state.hooks, state.exchange):
        hook.load_global(tensors, values)


def island_part(state: SyncState, local: int) -> Part:
    """What belongs to one local island: weights, buffers, inner and codec state, counters, an anchor of its own."""
    replica, transport = state.replicas[local], state.transport
    own = {} if replica.idle else replica.held
    tensors: dict[str, Tensor] = {f"model.{n}": p.detach() for n, p in own.items() if not replica.follows(n)}
    if not replica.shares_model:
        tensors.update({f"buffer.{n}": b for n, b in replica.buffers.items()})
    inner, meta = optimizer_state.to_tensors(replica.inner, "inner")
    tensors.update(inner)
    for i, kept in enumerate(state.codec_states[local]):
        if kept is not state.shared_codec_states.get(i):
            tensors.update({f"codec.{i}.{key}": t for key, t in kept.items()})
    for i, flight in state.in_flight.items():
        tensors[f"flight.{i}"] = flight.out.deltas[local][: state.fragments[i].numel]
    # an exchange in flight is done again after a resume: its bytes are counted then
    counted = [f.out.bytes_before[local] for f in state.in_flight.values()]
    sent, received = counted[0] if counted else (transport.sent_bytes[local], transport.received_bytes[local])
    values: dict[str, Any] = {
        "flights": [_flight_values(f.out, local) for f in state.in_flight.values()],
        "unverified": _rounds(state.consistency.later),
        "inner": meta,
        "follows": sum(f"model.{n}" not in tensors for n in replica.held),
        "codec_begins": [i for i, s in enumerate(state.codec_states[local]) if s is state.shared_codec_states.get(i)],
        "step": state.step,
        "pending": list(state.due),
        "must_rebase": state.must_rebase,
        "gradient_steps": state.gradient_steps,
        "tokens": replica.tokens,
        "failed_at": replica.failed_at,
        "unusable": sorted(replica.unusable),
        "synced_tokens": {str(k): v for k, v in replica.synced_tokens.items()},
        "bytes_sent": sent,
        "bytes_received": received,
        "sync_s": state.sync_s,
        "blocked_s": state.blocked_s,
    }
    if state.exchange.anchors == "own":
        values["own_outer"] = []
        for i in range(len(state.fragments)):
            named, meta = _anchor_part(state.anchor_of(i, local), f"own_weights.{i}", f"own_outer.{i}")
            tensors.update(named)
            values["own_outer"].append(meta)
    for part in (*state.hooks, state.exchange):
        more, meta = part.island_part(local)
        tensors.update(more)
        values.update(meta)
    return tensors, values


@torch.no_grad()
def load_island(state: SyncState, local: int, part: Part) -> None:
    """Put back what `island_part` gave.

    A signal finds processes at different steps of one round. Here, with several islands in one process, those that are
    ahead then wait, and an exchange that one of them was waiting in comes when the schedule asks for it.
    """
    tensors, values = part
    replica = state.replicas[local]
    _load_weights(state, local, tensors, values.get("follows", 0))
    for name, b in replica.buffers.items():
        if (saved := tensors.get(f"buffer.{name}")) is not None:  # else with the global part: islands shared them
            b.copy_(saved)
    optimizer_state.from_tensors(replica.inner, "inner", tensors, values["inner"])
    for i, kept in enumerate(state.codec_states[local]):
        if i in values.get("codec_begins", ()):
            continue
        saved = _under(f"codec.{i}.", tensors)
        state.codec_states[local][i] = {k: t.to(kept[k].device if k in kept else "cpu") for k, t in saved.items()}
    replica.steps, replica.tokens = values["step"], values["tokens"]
    replica.synced_tokens = {int(k): v for k, v in values["synced_tokens"].items()}
    replica.failed_at, replica.unusable = values.get("failed_at"), set(values.get("unusable", ()))
    state.look_again()
    state.step = min(r.steps for r in state.replicas)
    state.due = tuple(values["pending"]) if all(r.steps == state.step for r in state.replicas) else ()
    state.must_rebase, state.gradient_steps = values["must_rebase"], values["gradient_steps"]
    state.transport.sent_bytes[local] = values["bytes_sent"]
    state.transport.received_bytes[local] = values["bytes_received"]
    state.sync_s, state.blocked_s = values["sync_s"], values["blocked_s"]
    state.consensus = None
    if state.exchange.anchors == "own":
        for i, meta in enumerate(values["own_outer"]):
            _load_anchor(state.anchor_of(i, local), f"own_weights.{i}", f"own_outer.{i}", tensors, meta)
    for hook in (*state.hooks, state.exchange):
        hook.load_island(local, tensors, values)
    state.consistency.later = _postponed(state, values["unverified"])
    _load_flights(state, local, tensors, values["flights"])


def _load_weights(state: SyncState, local: int, tensors: dict[str, Tensor], follows: int) -> None:
    """Local weights that the part has; `follows` of them were the global ones, which it leaves out."""
    replica = state.replicas[local]
    names = list(replica.held)
    missing = [name for name in names if f"model.{name}" not in tensors]
    if len(missing) != follows:
        raise CheckpointError(f"island {local}'s part of the checkpoint lacks {missing[0] if missing else 'nothing'}")
    if missing:
        for index in range(len(state.fragments)):
            state.write_back(index, [local])
    for name in names:
        saved = tensors.get(f"model.{name}")
        if saved is not None and not (replica.follows(name) and torch.equal(replica.held[name], saved)):
            replica.own(name).copy_(saved)
    for index in range(len(state.fragments)):
        state.written(index, [local])


def _anchor_part(anchor: Anchor, weights: str, outer: str) -> Part:
    """Without padding, which depends on the number of islands."""
    state, meta = optimizer_state.to_tensors(anchor.optimizer, outer)
    return {weights: anchor.weights[: anchor.fragment.numel], **state}, {**meta, "version": anchor.version}


def _load_anchor(anchor: Anchor, weights: str, outer: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    anchor.weights[: anchor.fragment.numel].copy_(tensors[weights])
    optimizer_state.from_tensors(anchor.optimizer, outer, tensors, meta)
    anchor.version = meta.get("version", 0)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _flight_values(out: Outgoing, local: int) -> dict[str, Any]:
    return {
        "fragment": out.index,
        "step": out.round.step,
        "norm": out.norms[local],
        "tokens": out.tokens[local],
        "unsynced": out.unsynced[local],
        "verifies": _rounds(out.to_compare),
    }


def _rounds(later: dict[int, tuple[bytes, Round]]) -> list[list[int]]:
    return [[index, then.index, then.step] for index, (_, then) in later.items()]


def _postponed(state: SyncState, rounds: list[list[int]]) -> dict[int, tuple[bytes, Round]]:
    return {
        index: (state.anchors[index][0].digest(), Round(index=number, step=step, fragments=(index,), seed=0))
        for index, number, step in rounds
    }


def _load_flights(state: SyncState, local: int, tensors: dict[str, Tensor], saved: list[dict[str, Any]]) -> None:
    """Put back exchanges in flight, to which each local island adds its Delta; `relaunch` starts them."""
    if local == 0:
        state.in_flight.clear()
    for values in saved:
        index = values["fragment"]
        delta = state.fragments[index].delta(local).zero_()
        delta[: state.fragments[index].numel].copy_(tensors[f"flight.{index}"])
        if index not in state.in_flight:
            state.in_flight[index] = InFlight(out=_empty(state, index, values))
        out = state.in_flight[index].out
        out.deltas.append(delta)
        out.norms.append(values["norm"])
        out.tokens.append(values["tokens"])
        out.unsynced.append(values["unsynced"])
        out.states.append(state.codec_states[local][index])
        out.bytes_before.append((state.transport.sent_bytes[local], state.transport.received_bytes[local]))


def _empty(state: SyncState, index: int, values: dict[str, Any]) -> Outgoing:
    return Outgoing(
        fragment=state.fragments[index],
        index=index,
        round=dataclasses.replace(state.round_of(index), step=values["step"]),
        anchors=state.anchors[index],
        versions=[anchor.version for anchor in state.anchors[index]],
        deltas=[],
        norms=[],
        tokens=[],
        unsynced=[],
        states=[],
        rule_state=state.rule_states[index],
        norms_before=state.norms[index],
        delta_needed=True,
        overlapped=True,
        to_compare=_postponed(state, values["verifies"]),
    )
