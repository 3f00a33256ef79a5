"""CELLM: LoRA whose updates are sparse both ways.

Vavekanand and Sam, CELLM, arXiv 2407.20557.

    up:    D_k = top_q(factors before - factors of client k)       largest entries of A and B of the layer together
    down:  D = top_q(sum_k p_k D_k),   factors <- factors - D

Shapes and dtypes: those of `adapter`, fp32. Bytes: 8 q r (in + out) up and down per layer and client (an fp32 value and
an int32 place per kept entry) in the algebra here; in a run the codec sends it (TopK with error feedback: 2-bit values,
packed places), and islands without a server decode everybody's, so that nothing more is cut on the way down.
Aggregates: the mean of sparse updates of A and B; the error against sum_k p_k s_k B_k A_k is reported.
Raises: ConfigError for a fraction out of range.
Deviates: weights are tokens.
Reduces to: FedIT for fraction = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.aggregate.lora.adapter import Adapter, relative_error, target
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule
from lowcomm.types import Round, require


@dataclass(frozen=True, kw_only=True)
class Cellm(LoraRule):
    """Means of sparse updates of both factors."""

    fraction: float = 0.1
    """Entries of a layer's update that are kept, up and down."""

    def check(self) -> None:
        super().check()
        require(0 < self.fraction <= 1, "sync.aggregator.fraction", self.fraction, "0 < fraction <= 1", "0.1 is usual")
        require(self.ranks is None, "sync.aggregator.ranks", self.ranks, "None: CELLM needs equal ranks", "FlexLoRA")

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        start = torch.cat([before.a.flatten(), before.b.flatten()])
        total = torch.zeros_like(start)
        for x, p in zip(adapters, weights, strict=True):
            if p != 0:
                total += p * kept(start - torch.cat([x.a.flatten(), x.b.flatten()]), self.fraction)
        new = start - kept(total, self.fraction)
        a, b = new[: before.a.numel()].view_as(before.a), new[before.a.numel() :].view_as(before.b)
        server = Adapter(a=a, b=b, scale=self.scale)
        wanted, size = target(adapters, weights), 8 * count(start.numel(), self.fraction)
        return Aggregated(
            server=server,
            clients=self.down(server, adapters),
            up_bytes=(size,) * len(adapters),
            down_bytes=(size,) * len(adapters),
            error=relative_error(wanted, server.product),
            wanted_norm=wanted.norm(),
        )


def count(entries: int, fraction: float) -> int:
    """Entries that are kept of `entries`: at least one."""
    return max(1, round(entries * fraction))


def kept(update: Tensor, fraction: float) -> Tensor:
    """The largest entries by size, zeros elsewhere; fp32 [n]."""
    places = update.abs().topk(count(update.numel(), fraction)).indices
    return torch.zeros_like(update).index_copy(0, places, update[places])
