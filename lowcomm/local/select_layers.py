"""Selective layers: a client trains the layers whose gradients are largest, within a budget of bytes, and no others.

Sun et al., Exploring selective layer fine-tuning in federated learning, arXiv 2408.15600.

    at a round's first step:  S_k = the layers with the largest ||g_l|| / sqrt(bytes_l) that fit into `budget_bytes`
    in all of its steps:      parameters outside of S_k have no gradient, and the inner optimizer passes them over

g_l: the layer's gradients (both factors of a LoRA, or one tensor), their norm in fp32. A layer is in S_k for the rest
of the round once its weights differ from those that the round began with: nothing is kept but the weights, so a run
that stops inside a round goes on alike. The budget is that of one fragment; one layer is always trained.
Shapes and dtypes: any. No bytes by itself: with `codec.LargestLayers` of the same budget and the rule `SenderMean` what
was trained is what is sent, and each tensor is averaged over who trained it.
Raises: ConfigError for a budget below 4.
Deviates: clients choose each for itself, where the paper also draws their choices together. The norm is of one batch,
the round's first, after gradient clipping; layers are compared per byte. A first step that moves nothing (a learning
rate of 0) leaves the choice to the next; in bf16 a chosen layer whose first step rounds to nothing is passed over.
Reduces to: plain local training, for a budget that holds everything, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowcomm.local.objective import Objective
from lowcomm.types import Delta, require


@dataclass(frozen=True, kw_only=True)
class SelectLayers(Objective):
    """Whole layers by the size of their gradient at the beginning of a round."""

    budget_bytes: int = 100_000
    """fp32 bytes of the layers that a client trains in a round at most; one layer is always trained."""

    def correct(self, grads: Delta, local: Delta, start: Delta, controls: Delta) -> None:
        moved = {
            layer_of(n) for n, w in local.items() if n in grads and not torch.equal(w, start[n].to(w.device, w.dtype))
        }
        chosen = moved or self._largest(grads)
        for name in [n for n in grads if layer_of(n) not in chosen]:
            del grads[name]

    def _largest(self, grads: Delta) -> set[str]:
        squares, sizes = dict[str, float](), dict[str, int]()
        for name, g in grads.items():
            layer = layer_of(name)
            squares[layer] = squares.get(layer, 0.0) + float(g.float().square().sum())
            sizes[layer] = sizes.get(layer, 0) + 4 * g.numel()
        left, chosen = self.budget_bytes, set[str]()
        for layer in sorted(sizes, key=lambda x: (-squares[x] / max(1, sizes[x]), x)):
            if sizes[layer] <= left or not chosen:
                chosen.add(layer)
                left -= sizes[layer]
        return chosen

    def check(self) -> None:
        ok = self.budget_bytes >= 4
        require(ok, "sync.objective.budget_bytes", self.budget_bytes, "4 or more", "100000 trains a few layers")


def layer_of(name: str) -> str:
    """What comes before a LoRA factor's part of the name; the whole name of anything else."""
    return name.partition(".lora_")[0]
