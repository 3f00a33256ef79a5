"""One island's model and inner optimizer, as a sync sees them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.fragment import Fragment


class Replica:
    """Counts steps and tokens of one local island."""

    def __init__(self, model: nn.Module, inner: Optimizer) -> None:
        self.model, self.inner = model, inner
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.buffers = dict(model.named_buffers())
        self.steps = 0
        self.tokens = 0.0
        self.next_tokens = 0
        self.synced_tokens: dict[int, float] = {}
        self._lists: dict[int, list[Tensor]] = {}

    def tensors(self, fragment: Fragment) -> list[Tensor]:
        """This island's tensors of a fragment, in its order."""
        key = id(fragment)
        if key not in self._lists:
            self._lists[key] = [self.params[n] if n in self.params else self.buffers[n] for n in fragment.names]
        return self._lists[key]

    def grads(self, fragment: Fragment) -> list[Tensor]:
        """Gradients of `tensors`, made of zeros where this island had none: the others may have one."""
        params = self.tensors(fragment)
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in params if p.grad is not None]

    def take_step(self) -> None:
        """Count one inner step and the tokens announced for it (one unit if none were)."""
        self.steps += 1
        self.tokens += self.next_tokens or 1
        self.next_tokens = 0

    def unsynced(self, fragment: int) -> float:
        """Tokens trained since this fragment's last sync."""
        return self.tokens - self.synced_tokens.get(fragment, 0.0)

    def mark_synced(self, fragment: int) -> None:
        """This fragment now holds the global weights."""
        self.synced_tokens[fragment] = self.tokens
