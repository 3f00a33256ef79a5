"""FLoRA: the clients' factors are stacked, added to the base weight, and everybody starts from fresh factors.

Wang et al., FLoRA, arXiv 2409.05976.

    B = [p_1 s_1 B_1, ..., p_K s_K B_K],   A = [A_1; ...; A_K]    =>   B A = sum_k p_k s_k B_k A_k, exactly
    W <- W + B A,   then A fresh, B = 0

Shapes and dtypes: B [out, sum r_k], A [sum r_k, in], fp32. Bytes: 4 r_k (in + out) up, 4 sum_k r_k (in + out) down per
layer and client; between islands without a server every factor crosses once to everyone, which is the same.
Aggregates: sum_k p_k s_k B_k A_k, exactly, for any ranks and scales.
Raises: ConfigError for a base weight that another layer shares (tied): what one layer learnt would change the other.
Deviates: fresh factors are drawn from the round's seed, so that all islands have the same ones, with U(-1, 1)/sqrt(in)
(peft's default for A). Inner moments start again with them.
Reduces to: one client => its own dW merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.aggregate.lora.adapter import Adapter, target
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish
from lowcomm.types import Round


@dataclass(frozen=True, kw_only=True)
class FLoRA(LoraRule):
    """Stacked factors into the base weight, fresh factors for all."""

    regauges: ClassVar[bool] = True
    moves_base: ClassVar[bool] = True

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        stacked = target(adapters, weights)
        server = Adapter(a=fresh(before.a, round, layer), b=torch.zeros_like(before.b), scale=self.scale)
        return finish(self, adapters, weights, server, stacked, down_bytes=stacked.nbytes)


def fresh(like: Tensor, round: Round, layer: int) -> Tensor:
    """A new A [r, in], uniform in +- 1/sqrt(in), from the round's seed and the layer's number."""
    seed = (round.seed + (layer + 1) * 0x9E3779B97F4A7C15) % 2**63
    bound = 1 / math.sqrt(like.shape[1])
    drawn = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return (drawn * 2 - 1).mul(bound).to(like.device)
