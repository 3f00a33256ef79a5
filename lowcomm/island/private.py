"""An island that trains with DP-SGD: gradients of single sequences, clipped, summed, noised.

The equation and the guarantee are in `lowcomm.privacy.example_gaussian`. One backward per sequence: memory is that of a
batch of one and two copies of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowcomm.island.plain import Batch, PlainIsland, counted_tokens

Protect = Callable[[Sequence[Tensor]], object]
"""In place."""


class PrivateIsland(PlainIsland):
    """PlainIsland with another backward. `clip` and `noise` are set before the first step."""

    clip_each: Protect
    """Clips the gradient of one sequence."""
    add_noise: Protect
    """Adds noise to the sum over all sequences of a step."""
    expected: int | None = None
    """Sequences of a step on average, where they are drawn by chance; None: as many as there are."""

    def backward(self, batches: Sequence[Batch]) -> float:
        """The private gradient of the mean loss; returns the loss itself, in nats per token, which is not private.

        Both are sums over the expected number of sequences, where there is one: means are right on average only.
        """
        self._swap_in()
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]
        total, count = 0.0, 0
        for inputs, targets in batches:
            for i in range(inputs.shape[0]):
                one = slice(i, i + 1)
                losses = self.losses(self.forward_model, inputs[one].to(self.device), targets[one].to(self.device))
                loss = losses.sum() / counted_tokens([(inputs[one], targets[one])])
                found = torch.autograd.grad(loss, self.params, allow_unused=True, materialize_grads=True)
                own = [g.float() for g in found]
                self.clip_each(own)
                for s, g in zip(sums, own, strict=True):
                    s.add_(g)
                total, count = total + float(loss.detach()), count + 1
        self.add_noise(sums)
        count = max(count, 1) if self.expected is None else self.expected
        for p, s in zip(self.params, sums, strict=True):
            mean = s.div_(count).to(p.dtype)
            p.grad = mean if p.grad is None else p.grad.add_(mean)
        self._swap_out_rng()
        return total / count

    def reported_tokens(self, batches: Sequence[Batch]) -> int:
        """All tokens of as many sequences as there always are: others must not learn what is in these."""
        sequences = sum(len(inputs) for inputs, _ in batches) if self.expected is None else self.expected
        return sequences * batches[0][0].shape[1]
