"""The state of a LocalSGD as named tensors and JSON values, for checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowcomm import optimizer_state
from lowcomm.checkpoint import Part
from lowcomm.sync import LocalSGD
from lowcomm.types import CheckpointError


def global_part(sync: LocalSGD) -> Part:
    """What is equal on every island: global weights, outer state, round."""
    tensors: dict[str, Tensor] = {}
    outer: list[dict[str, Any]] = []
    for i, (fragment, optimizer) in enumerate(zip(sync.fragments, sync.outers, strict=True)):
        tensors[f"weights.{i}"] = fragment.weights[: fragment.numel]  # padding depends on the number of islands
        state, meta = optimizer_state.to_tensors(optimizer, f"outer.{i}")
        tensors.update(state)
        outer.append(meta)
    return tensors, {"round": sync.round, "outer": outer, "fragments": [list(f.names) for f in sync.fragments]}


def load_global(sync: LocalSGD, part: Part) -> None:
    """Put back what `global_part` gave. Raises CheckpointError for another model."""
    tensors, values = part
    if values["fragments"] != [list(f.names) for f in sync.fragments]:
        raise CheckpointError("the checkpoint is of a model with other parameters or fragments")
    for i, (fragment, optimizer) in enumerate(zip(sync.fragments, sync.outers, strict=True)):
        fragment.weights[: fragment.numel].copy_(tensors[f"weights.{i}"])
        optimizer_state.from_tensors(optimizer, f"outer.{i}", tensors, values["outer"][i])
    sync.round = values["round"]


def island_part(sync: LocalSGD, local: int) -> Part:
    """What belongs to one local island: weights, buffers, inner and codec state, counters."""
    replica = sync.replicas[local]
    tensors: dict[str, Tensor] = {f"model.{n}": p.detach() for n, p in replica.params.items()}
    tensors.update({f"buffer.{n}": b for n, b in replica.buffers.items()})
    inner, meta = optimizer_state.to_tensors(replica.inner, "inner")
    tensors.update(inner)
    for i, state in enumerate(sync.codec_states[local]):
        tensors.update({f"codec.{i}.{key}": t for key, t in state.items()})
    return tensors, {
        "inner": meta,
        "step": sync.step,
        "pending": list(sync.pending),
        "must_rebase": sync.must_rebase,
        "gradient_steps": sync.gradient_steps,
        "tokens": replica.tokens,
        "synced_tokens": {str(k): v for k, v in replica.synced_tokens.items()},
        "bytes_sent": sync.transport.sent_bytes[local],
        "bytes_received": sync.transport.received_bytes[local],
        "sync_s": sync.sync_s,
        "blocked_s": sync.blocked_s,
    }


@torch.no_grad()
def load_island(sync: LocalSGD, local: int, part: Part) -> None:
    """Put back what `island_part` gave.

    A signal finds processes at different steps of one round. Here, with several islands in one process, those that are
    ahead then wait, and an exchange that one of them was waiting in comes when the schedule asks for it.
    """
    tensors, values = part
    replica = sync.replicas[local]
    for name, p in replica.params.items():
        p.copy_(tensors[f"model.{name}"])
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
    sync.sync_s, sync.blocked_s = values["sync_s"], values["blocked_s"]
