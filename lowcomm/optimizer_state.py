"""Optimizer state as named tensors and JSON scalars, without pickle and without casts.

`Optimizer.load_state_dict` casts state to the parameter's dtype, so that an fp32 moment of a bf16 parameter would not
survive a resume: here it is put back as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.island.dtensor import local, spread_like
from lowcomm.types import CheckpointError


def to_tensors(optimizer: Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `PREFIX.INDEX.KEY` and a JSON-able dict with the other state and the groups' numbers."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, p in enumerate(_params(optimizer)):
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{key}"] = local(value)
            else:
                scalars[f"{prefix}.{index}.{key}"] = value
    groups = [
        {k: v for k, v in g.items() if k != "params" and isinstance(v, (int, float, bool, str))}
        for g in optimizer.param_groups
    ]
    return tensors, {"scalars": scalars, "groups": groups}


def from_tensors(optimizer: Optimizer, prefix: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Put back what `to_tensors` gave. Raises CheckpointError if the parameters do not match."""
    params = _params(optimizer)
    if len(meta["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(meta['groups'])} groups, this one {len(optimizer.param_groups)}"
        )
    optimizer.state.clear()
    values: dict[str, Any] = {**{k: t for k, t in tensors.items() if k.startswith(prefix + ".")}, **meta["scalars"]}
    for full_key, value in values.items():
        _, index, key = full_key.rsplit(".", 2)
        if int(index) >= len(params):
            raise CheckpointError(f"the checkpoint's optimizer has state for parameter {index}, here are {len(params)}")
        p = params[int(index)]
        if isinstance(value, Tensor):
            # a step counter stays where it was; everything shaped like the parameter goes to its device
            shaped = value.shape == local(p).shape
            value = spread_like(value.to(p.device).clone(), p) if shaped else value.clone()
        optimizer.state[p][key] = value
    for group, saved in zip(optimizer.param_groups, meta["groups"], strict=True):
        group.update(saved)


def _params(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
