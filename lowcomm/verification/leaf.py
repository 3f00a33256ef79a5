"""Leaves: SHA-256 of all that an island's next step depends on.

Names, dtypes, shapes and bits of trained weights and buffers, of the inner optimizer's state, random states and the
place in the text; with the anchors and outer optimizers for what follows an exchange.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowcomm import optimizer_state

if TYPE_CHECKING:
    from lowcomm.data.shard import Shard
    from lowcomm.island import PlainIsland
    from lowcomm.state.state import SyncState


def hash_of(tensors: Iterable[tuple[str, Tensor]], values: Any = None) -> bytes:
    """32 bytes over named tensors and JSON values."""
    state = sha256(json.dumps(values, sort_keys=True).encode())
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):  # an optimizer's state comes back in another order
        state.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().contiguous().reshape(-1).cpu()
        state.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return state.digest()


def island_leaf(island: PlainIsland, shard: Shard) -> bytes:
    """Of an island by itself."""
    named: dict[str, Tensor] = {f"model.{n}": p for n, p in island.model.named_parameters() if p.requires_grad}
    named |= {f"buffer.{n}": b for n, b in island.model.named_buffers()}
    inner, meta = optimizer_state.to_tensors(island.inner, "inner")
    random = {"rng.cpu": island.cpu_rng} | ({} if island.cuda_rng is None else {"rng.cuda": island.cuda_rng})
    return hash_of([*named.items(), *inner.items(), *random.items()], [meta, _plain(shard.state_dict())])


def shared_leaf(state: SyncState) -> bytes:
    """Of what islands that share anchors have in common: anchors, outer optimizers, what the rule remembers."""
    named: list[tuple[str, Tensor]] = []
    values: list[Any] = []
    for index, anchors in enumerate(state.anchors):
        anchor = anchors[0]
        outer, meta = optimizer_state.to_tensors(anchor.optimizer, f"outer.{index}")
        named += [(f"weights.{index}", anchor.weights[: anchor.fragment.numel]), *outer.items()]
        named += [(f"rule.{index}.{name}", t) for name, t in state.rule_states[index].items()]
        values.append([meta, anchor.version])
    return hash_of(named, values)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: a place that was saved and loaded must hash like one that was not."""
    return json.loads(json.dumps(values))
