"""Directions from seeds, in chunks of a tensor: a probe perturbs a weight while it is used, an update moves it.

Neither ever holds a direction. A probe's extra memory is the perturbed copies of one module's own parameters; after its
forward pass the weights are the tensors they were, so islands that probe apart keep equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowcomm.local.estimate import mix
from lowcomm.types import CoverageError

CHUNK = 1 << 16
"""Elements of a direction drawn at a time (256 KB); another number would give other bits."""


@torch.no_grad()
def move(weight: Tensor, number: int, terms: Sequence[tuple[int, float]], out: Tensor | None = None) -> None:
    """`weight + sum_i c_i z(seed_i)` for pairs (seed_i, c_i), into `out` (None: in place); rounded to its dtype once.

    number: of the parameter in its model. Tensors are contiguous. Sums are in fp32.
    """
    source, target = weight.detach().view(-1), (weight if out is None else out).detach().view(-1)
    draws = [(torch.Generator(weight.device).manual_seed(mix(seed, number)), c) for seed, c in terms]
    for start in range(0, source.numel(), CHUNK):
        moved = source[start : start + CHUNK].to(torch.float32, copy=True)
        for generator, c in draws:
            moved.add_(torch.randn(moved.numel(), generator=generator, device=weight.device), alpha=c)
        target[start : start + CHUNK].copy_(moved)


class Probe:
    """Forward passes of a model at `w + scale * z(seed)`, over its trainable parameters.

    Raises CoverageError for a parameter that a forward pass did not reach through the module that owns it.
    """

    def __init__(self, model: nn.Module) -> None:
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        numbers = {id(p): i for i, (_, p) in enumerate(trainable)}
        self.names = [name for name, _ in trainable]
        self.owners: list[tuple[nn.Module, list[tuple[int, nn.Parameter]]]] = []
        parents = {id(child): module for module in model.modules() for child in module.children()}
        for module in model.modules():
            own = [(numbers[id(p)], p) for p in module.parameters(recurse=False) if id(p) in numbers]
            if own:  # a container of parameters has no forward pass: they are used in that of its parent
                container = isinstance(module, nn.ParameterDict | nn.ParameterList)
                self.owners.append((parents[id(module)] if container else module, own))

    @contextmanager
    def at(self, seed: int, scale: float) -> Iterator[None]:
        """Within, forward passes use perturbed weights; one at a scale of 0 uses them as they are."""
        if scale == 0:
            yield
            return
        reached: set[int] = set()
        handles: list[Any] = []
        for module, own in self.owners:
            before, after = _swap(own, seed, scale, reached)
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        missed = [name for number, name in enumerate(self.names) if number not in reached]
        if missed:
            raise CoverageError(
                f"parameter {missed[0]} was not perturbed: it is not used in the forward pass of its own module. "
                "Fix: freeze it, or train with gradients"
            )


def _swap(
    own: Sequence[tuple[int, nn.Parameter]], seed: int, scale: float, reached: set[int]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks before and after a module's forward pass: its parameters perturbed, and as they were."""
    kept: list[tuple[nn.Parameter, Tensor]] = []

    def before(*_: object) -> None:
        for number, p in own:
            perturbed = torch.empty_like(p.data)
            move(p.data, number, [(seed, scale)], perturbed)
            kept.append((p, p.data))
            p.data = perturbed
            reached.add(number)

    def after(*_: object) -> None:
        while kept:
            p, original = kept.pop()
            p.data = original

    return before, after
