"""Fed-SB: dW = s B R A with B and A frozen and common; only the r x r core R is trained and averaged.

Singhal et al., Fed-SB, arXiv 2502.15436.

    R = sum_k p_k R_k    =>    s B R A = sum_k p_k s B R_k A, exactly

Shapes and dtypes: R [r, r], fp32. Bytes: 4 r^2 up and down per layer and client, whatever the layer's size.
Aggregates: sum_k p_k s_k B_k A_k for B_k = B R_k, exactly.
Raises: ConfigError for clients of other frozen factors.
Deviates: weights are tokens; in a run A and B are the leading singular vectors of the base weight (as LoRA-XS, arXiv
2405.17604, has them), where the paper takes them from the first full gradient.
Reduces to: the plain mean over R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.aggregate.lora.adapter import Adapter
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule, finish
from lowcomm.types import Round, require


@dataclass(frozen=True, kw_only=True)
class FedSB(LoraRule):
    """The mean of r x r cores between common frozen factors."""

    needs: ClassVar[Literal["sum", "each"]] = "sum"
    factors: ClassVar[frozenset[str]] = frozenset()

    def check(self) -> None:
        super().check()
        require(self.ranks is None, "sync.aggregator.ranks", self.ranks, "None: Fed-SB shares A and B", "use FlexLoRA")

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        """Of adapters B R_k and A: the mean of B R_k is B times the mean of R_k. Prefer `cores`."""
        b = torch.zeros_like(before.b)
        for x, p in zip(adapters, weights, strict=True):
            if p != 0:
                same = x.a.shape == before.a.shape and bool((x.a == before.a).all())
                require(
                    same, "adapter", tuple(x.a.shape), "the common frozen A", "build all clients from one base model"
                )
                b = b + x.b * p
        server = Adapter(a=before.a, b=b, scale=self.scale)
        done = finish(self, adapters, weights, server)
        size = (4 * self.rank**2,) * len(adapters)
        return Aggregated(
            server=server,
            clients=done.clients,
            up_bytes=size,
            down_bytes=size,
            error=done.error,
            wanted_norm=done.wanted_norm,
        )

    def cores(self, cores: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """sum_k p_k R_k, fp32 [r, r]."""
        mean = torch.zeros_like(cores[0])
        for core, p in zip(cores, weights, strict=True):
            if p != 0:
                mean = mean + core * p
        return mean
