"""The local weights of a member, per fragment in fp32:

    local = global(version) - sum(departed of pending contributions) - unsent

Delta = global - sum(pending departed) - local: never `global - local` while something is pending.
apply:  local += (global_new - global_old) + sum(departed of mine in this commit), with alpha
        local = alpha local + (1 - alpha) (global_new - sum(pending departed)).
What is rounded on the way becomes a part of `unsent`: the Delta is always taken from what the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.store.layout import Layout


@torch.no_grad()
def delta_of(layout: Layout, weights: Tensor, outstanding: Tensor | None, tensors: Sequence[Tensor]) -> Tensor:
    """What is unsent: fp32, flat, on the CPU. weights: the global ones; tensors: the local ones, of any float dtype."""
    flat = weights.clone() if outstanding is None else weights - outstanding
    for view, t in zip(layout.views(flat).values(), tensors, strict=True):
        view.sub_(t.detach().to(view.device, torch.float32))
    return flat


@torch.no_grad()
def take(layout: Layout, weights: Tensor, outstanding: Tensor | None, tensors: Sequence[Tensor]) -> None:
    """Local weights <- global - outstanding: nothing is unsent. After a heal, or where nothing was trained since."""
    flat = weights if outstanding is None else weights - outstanding
    for view, t in zip(layout.views(flat).values(), tensors, strict=True):
        t.copy_(view)


@torch.no_grad()
def rebase(layout: Layout, old: Tensor, new: Tensor, departed: Tensor | None, tensors: Sequence[Tensor]) -> None:
    """Local weights += (new - old) + departed: what is unsent stays so."""
    flat = new - old
    if departed is not None:
        flat.add_(departed)
    for view, t in zip(layout.views(flat).values(), tensors, strict=True):
        t.copy_(t.to(view.device, torch.float32).add_(view) if t.dtype != torch.float32 else t.cpu() + view)


@torch.no_grad()
def merge(layout: Layout, new: Tensor, outstanding: Tensor | None, tensors: Sequence[Tensor], alpha: float) -> None:
    """Local weights <- alpha local + (1 - alpha) (new - outstanding)."""
    flat = new.clone() if outstanding is None else new - outstanding
    for view, t in zip(layout.views(flat).values(), tensors, strict=True):
        t.copy_(t.detach().to(view.device, torch.float32).mul(alpha).add_(view, alpha=1 - alpha))
