"""BitFit: only biases are trained. Ben Zaken et al., arXiv 2106.10199.

Llama and its kin have no biases: there `norms` adds the scales of the normalisation layers, the nearest thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lowcomm.model.tuning import Tuning
from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class BitFit(Tuning):
    """All biases, and with `norms` the scales of normalisation layers."""

    norms: bool = False
    """Train the 1-D weights of normalisation layers too."""

    def check(self) -> None:
        return None

    def apply(self, model: PreTrainedModel) -> nn.Module:
        model.requires_grad_(False)
        chosen = [
            p
            for name, p in model.named_parameters()
            if name.endswith("bias") or (self.norms and p.dim() == 1 and name.endswith("weight"))
        ]
        if not chosen:
            raise ConfigError(
                "model.tuning = BitFit(norms=False) is not allowed: the model has no bias. "
                "Fix: pass norms=True, or use LoRA"
            )
        for p in chosen:
            p.requires_grad_(True)
        return model
