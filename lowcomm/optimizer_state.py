"""Optimizer state as named tensors and JSON scalars, without pickle and without casts.

`Optimizer.load_state_dict` casts state to the parameter's dtype, so that an fp32 moment of a bf16 parameter would not
survive a resume: here it is put back as it was. Lists (the preconditioners of SOAP, one per side) are taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowcomm.island.dtensor import local, spread_like
from lowcomm.types import CheckpointError

LIST = "list of"
"""The scalar `KEY` is [LIST, n] where `KEY[0]` to `KEY[n - 1]` are stored."""


def to_tensors(optimizer: Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `PREFIX.INDEX.KEY` and a JSON-able dict with the other state and the groups' numbers."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, p in enumerate(_params(optimizer)):
        for key, value in optimizer.state.get(p, {}).items():
            _take_apart(f"{prefix}.{index}.{key}", value, tensors, scalars)
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
    for full_key in values:
        _, index, key = full_key.rsplit(".", 2)
        if int(index) >= len(params):
            raise CheckpointError(f"the checkpoint's optimizer has state for parameter {index}, here are {len(params)}")
        if "[" not in key:
            p = params[int(index)]
            optimizer.state[p][key] = _put_together(full_key, values, p)
    for group, saved in zip(optimizer.param_groups, meta["groups"], strict=True):
        group.update(saved)


def _take_apart(name: str, value: Any, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    if isinstance(value, Tensor):
        tensors[name] = local(value)
    elif isinstance(value, list):
        scalars[name] = [LIST, len(value)]
        for i, item in enumerate(value):
            _take_apart(f"{name}[{i}]", item, tensors, scalars)
    else:
        scalars[name] = value


def _put_together(name: str, values: Mapping[str, Any], p: Tensor) -> Any:
    value = values[name]
    if isinstance(value, list):
        return [_put_together(f"{name}[{i}]", values, p) for i in range(value[1])]
    if isinstance(value, Tensor):
        # a step counter stays where it was; everything else goes to the parameter's device
        if value.shape == local(p).shape:
            return spread_like(value.to(p.device).clone(), p)
        return value.to(p.device).clone() if value.ndim > 0 else value.clone()
    return value


def _params(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
