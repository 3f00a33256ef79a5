"""The base of rules that look at one coordinate of all Deltas at a time.

    D[x] = reduce(D_1[x], ..., D_K[x])

No coordinate sees another: shards, fragments and tensors give what the whole would. Deltas are fp32; each tensor is
taken `BLOCK` elements at a time, sorted and summed in that order, so that bits do not depend on the hardware.
Cost: K payloads at every island (the exchange is a gather) and K fp32 Deltas in memory; a sort of K per parameter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lowcomm_kernels.sort_rows import sort_rows
from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.robust import RobustRule
from lowcomm.types import Contribution

BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class CoordinateRule(RobustRule):
    """A rule that maps the K values of a coordinate, in ascending order, to one; islands weigh the same."""

    @abstractmethod
    def reduce(self, ordered: Tensor) -> Tensor:
        """[K, n], sorted along K -> [n]."""

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        if not contributions:
            raise ValueError("no contribution to aggregate")
        delta = {name: torch.empty_like(t) for name, t in contributions[0].delta.items()}
        for name, whole in delta.items():
            rows, out = [c.delta[name].reshape(-1) for c in contributions], whole.view(-1)
            for start in range(0, out.numel(), BLOCK):
                block = torch.stack([r[start : start + BLOCK] for r in rows])
                sort_rows(block)
                out[start : start + BLOCK] = self.reduce(block)
        return Aggregate(delta=delta)


def mean_in_order(rows: Tensor) -> Tensor:
    """The mean of rows, added one after the other."""
    total = rows[0].clone()
    for row in rows[1:]:
        total.add_(row)
    return total.mul_(1 / len(rows))
