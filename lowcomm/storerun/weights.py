"""Local weights between a chain and one's own training, in fp32 and by fragment:

    local = global(version) - sum of departed work of pending contributions - unsent
            `-------------------- reference --------------------'

The anchors of a member's LocalSGD hold the reference, so that `anchor - local` is always what was not sent yet. When
nothing is pending the reference is the global weights, to the bit, and so is what was not trained since.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lowcomm.state.state import SyncState


class LocalWeights:
    """The replica of a LocalSGD of one island; vectors are flat, fp32, on the CPU, of the fragment's elements.

    outstanding: the sum of what departed and is in no commit yet; None: nothing is.
    """

    def __init__(self, state: SyncState, alpha: float | None = None) -> None:
        self.state, self.alpha = state, alpha
        self.private: frozenset[str] = frozenset()
        """Tensors that the island keeps to itself: the chain does not overwrite them."""

    @torch.no_grad()
    def take(self, fragment: int, weights: Tensor) -> None:
        """local = global: whatever was trained since is dropped."""
        self._reference(fragment).copy_(weights)
        for name, p, view in self._each(fragment):
            if name not in self.private:
                p.copy_(view)
        self.state.written(fragment, [0])

    @torch.no_grad()
    def departed(self, fragment: int, weights: Tensor, outstanding: Tensor | None, everything: bool) -> None:
        """A contribution left. everything: with all that was unsent, so that nothing is, to the bit."""
        if not everything:
            self._reference(fragment).copy_(_without(weights, outstanding))
            return
        for _, p, view in self._each(fragment):
            view.copy_(p)

    @torch.no_grad()
    def rebase(self, fragment: int, weights: Tensor, outstanding: Tensor | None) -> None:
        """The chain went on: the local weights move along, and what is unsent stays so."""
        target = _without(weights, outstanding).to(self._reference(fragment).device)
        start = 0
        for name, p, view in self._each(fragment):
            wanted = target[start : start + view.numel()].view(view.shape)
            start += view.numel()
            if name not in self.private:
                local = p.to(view.device, torch.float32)
                if self.alpha is None:
                    unsent = view - local
                    p.copy_(torch.where(unsent == 0, wanted, wanted - unsent))
                else:
                    p.copy_(local.mul(self.alpha).add_(wanted, alpha=1 - self.alpha))
            view.copy_(wanted)
        self.state.written(fragment, [0])

    @torch.no_grad()
    def hold(self, weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Let the anchors hold these, as evaluation and export read global weights there; returns what they held."""
        before = {f: self._reference(f).clone() for f in weights}
        for fragment, flat in weights.items():
            self._reference(fragment).copy_(flat)
        return before

    def _reference(self, fragment: int) -> Tensor:
        anchor = self.state.anchor_of(fragment, 0)
        return anchor.weights[: anchor.fragment.numel]

    def _each(self, fragment: int) -> list[tuple[str, Tensor, Tensor]]:
        """Name, tensor of the replica, view of the reference."""
        named, tensors = self.state.anchor_of(fragment, 0).named, self.state.tensors(fragment, [0])[0]
        return [(name, p, view) for (name, view), p in zip(named.items(), tensors, strict=True)]


def _without(weights: Tensor, outstanding: Tensor | None) -> Tensor:
    return weights if outstanding is None else weights - outstanding
