"""The layers whose updates are largest, within a budget of bytes (selective layers).

Each island sends whole layers (both factors of a LoRA, or one tensor) in descending order of ||Delta|| / sqrt(bytes)
until `budget_bytes` of fp32 are full; each tensor is then averaged over who sent it.
Shapes and dtypes: those of the Delta, fp32. Cost: at most `codec`'s for `budget_bytes` / 4 parameters, or one layer.
Raises: as Parts; ConfigError for a budget below 4.
Deviates: layers are picked after the local phase, by their whole update: what was learnt in the others is given up
with the global weights that replace it. `local.SelectLayers` of the same budget picks them before it, by the norm of a
gradient, and trains no others.
Reduces to: `codec`, for a budget that holds everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowcomm.codec.parts import Parts, layer_of
from lowcomm.types import Delta, Round, require


@dataclass(frozen=True, kw_only=True)
class LargestLayers(Parts):
    """Whole layers by the size of their update."""

    budget_bytes: int = 100_000
    """fp32 bytes that an island sends per round at most; one layer is always sent."""

    def pick(self, delta: Delta, round: Round) -> list[bool]:
        layers: dict[str, list[torch.Tensor]] = {}
        for name, d in delta.items():
            layers.setdefault(layer_of(name), []).append(d)
        sizes = {layer: 4 * sum(t.numel() for t in tensors) for layer, tensors in layers.items()}
        norms = {
            layer: float(torch.stack([t.double().norm() for t in tensors]).norm()) for layer, tensors in layers.items()
        }
        norms = {
            layer: norm if norm == norm else float("inf") for layer, norm in norms.items()
        }  # NaN is for the encoder
        left, chosen = self.budget_bytes, set[str]()
        for layer in sorted(layers, key=lambda x: (-norms[x] / max(1, sizes[x]) ** 0.5, x)):
            if sizes[layer] <= left or not chosen:
                chosen.add(layer)
                left -= sizes[layer]
        return [layer_of(name) in chosen for name in delta]

    def check(self) -> None:
        super().check()
        ok = self.budget_bytes >= 4
        require(ok, "sync.codec.budget_bytes", self.budget_bytes, "4 or more", "100000 sends a few layers")
