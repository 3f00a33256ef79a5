"""The proof that no trainable weight lies in another tensor's memory: what is synced as two tensors must be two.

Two Parameters on one storage (`head.weight.data = embedding.weight.data`) are trained as one and synced as two: their
rounding differs, and each write-back overwrites the other's. One Parameter of two names (tied weights) is one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lowcomm.island.dtensor import local
from lowcomm.types import CoverageError


@dataclass(frozen=True, kw_only=True)
class _Region:
    """The bytes of a storage from the first to the last element of a tensor."""

    name: str
    tensor: Tensor
    trainable: bool
    start: int
    end: int


def check_storage(models: Sequence[nn.Module]) -> None:
    """Raise CoverageError naming two tensors that share memory, one of which is trained.

    models: the islands of this process, among which frozen weights may be shared, and trainable ones may not.
    """
    by_storage: dict[tuple[torch.device, int], list[_Region]] = {}
    seen: set[int] = set()
    for island, model in enumerate(models):
        for name, tensor, trainable in _tensors(model):
            if id(tensor) in seen and not trainable:
                continue
            if id(tensor) in seen:
                raise CoverageError(
                    f"parameter {name} of island {island} is also another island's: each island needs a model of its "
                    "own, such as copy.deepcopy(model)"
                )
            seen.add(id(tensor))
            held = local(tensor.detach())
            if held.layout != torch.strided or held.numel() == 0 or held.is_meta:
                continue
            region = _region(name if len(models) == 1 else f"{name} (island {island})", held, trainable)
            by_storage.setdefault((held.device, held.untyped_storage().data_ptr()), []).append(region)
    for regions in by_storage.values():
        _check_regions(regions)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Parameters and buffers by name, and whether they are trained; tied ones once."""
    for name, p in model.named_parameters():
        yield f"parameter {name}", p, p.requires_grad
    for name, b in model.named_buffers():
        yield f"buffer {name}", b, False


def _region(name: str, held: Tensor, trainable: bool) -> _Region:
    width = held.element_size()
    last = sum((n - 1) * s for n, s in zip(held.shape, held.stride(), strict=True))
    start = int(held.storage_offset()) * width
    return _Region(name=name, tensor=held, trainable=trainable, start=start, end=start + (last + 1) * width)


def _check_regions(regions: list[_Region]) -> None:
    if len(regions) == 1 or not any(r.trainable for r in regions):
        return
    regions.sort(key=lambda r: r.start)
    if all(a.end <= b.start for a, b in pairwise(regions)):
        return  # pieces of one flat buffer, side by side
    for i, a in enumerate(regions):
        for b in regions[i + 1 :]:
            if (a.trainable or b.trainable) and b.start < a.end and _share_bytes(a, b):
                raise CoverageError(
                    f"{a.name} and {b.name} lie in the same memory, but are two tensors: they would be synced twice "
                    "and drift apart. Tie them as one (`b.weight = a.weight`), or give each its own (`.clone()`)"
                )


def _share_bytes(a: _Region, b: _Region) -> bool:
    """Whether two tensors of one storage have a byte in common; columns of one matrix lie between each other's."""
    start, end = min(a.start, b.start), max(a.end, b.end)
    touched = torch.zeros(end - start, dtype=torch.bool)
    for region, mark in ((a, True), (b, False)):
        held = region.tensor
        width = held.element_size()
        shape, stride = (*held.shape, width), (*(s * width for s in held.stride()), 1)
        own = touched.as_strided(shape, stride, region.start - start)
        if mark:
            own.fill_(True)
        elif bool(own.any()):
            return True
    return False
