"""Tensors that are spread over ranks (DTensor): the part that lies here, and back."""

from __future__ import annotations

import sys

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """The part that lies on this rank, detached and sharing memory; a plain tensor as it is, detached."""
    detached = tensor.detach()
    return detached.to_local() if is_spread(detached) else detached  # pyright: ignore[reportAttributeAccessIssue]


def is_spread(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Does not import torch.distributed.tensor: where nobody has, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """A DTensor placed as `like` is, whose part here is `value`; plain `like`: the value."""
    if not is_spread(like):
        return value
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(value, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
