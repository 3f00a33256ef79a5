"""A Delta as one flat vector: 1-D tensors and scalars then cost what they should, and one kernel call does it all."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm.types import Delta, PayloadError

LOOKED_AT = 1 << 18
"""Elements checked at a time."""


def flatten(delta: Delta) -> Tensor:
    """fp32 [numel]: a view where the tensors follow each other in memory (as in a fragment), else a copy."""
    tensors = list(delta.values())
    for name, d in delta.items():
        if d.dtype != torch.float32:
            raise PayloadError(f"tensor {name} of the pseudo-gradient is {d.dtype}: a Delta is torch.float32")
    if not tensors:
        return torch.empty(0)
    base = tensors[0]
    place = base.storage_offset()
    for d in tensors:
        same = d.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
        if not (same and d.is_contiguous() and d.storage_offset() == place):
            return torch.cat([t.reshape(-1) for t in tensors])
        place += d.numel()
    return base.as_strided((place - base.storage_offset(),), (1,), base.storage_offset())


def unflatten(flat: Tensor, like: Delta) -> Delta:
    """Named views of `flat` (fp32 [numel]) with the shapes of `like`."""
    parts = flat[: count(like)].split([d.numel() for d in like.values()])
    return {name: part.view(d.shape) for (name, d), part in zip(like.items(), parts, strict=True)}


def count(like: Delta) -> int:
    """Elements of all tensors."""
    return sum(d.numel() for d in like.values())


def device_of(like: Delta) -> torch.device:
    """The device that the tensors are on."""
    return next((d.device for d in like.values()), torch.device("cpu"))


def first_non_finite(flat: Tensor) -> int | None:
    """Index of the first element of fp32 [n] that is NaN or infinite; a part at a time, so that it needs no copy."""
    for start in range(0, flat.numel(), LOOKED_AT):
        finite = flat[start : start + LOOKED_AT].isfinite()
        if not bool(finite.all()):
            return start + int(finite.to(torch.uint8).argmin())
    return None


def name_of(delta: Delta, index: int) -> str:
    """The tensor that holds element `index` of the flat vector."""
    for name, d in delta.items():
        if index < d.numel():
            return name
        index -= d.numel()
    raise IndexError(index)


def non_finite(delta: Delta, index: int) -> PayloadError:
    """The error of an encoder whose input is NaN or infinite at flat element `index`."""
    name = name_of(delta, index)
    return PayloadError(f"tensor {name} of the pseudo-gradient is NaN or infinite: nothing was encoded")
