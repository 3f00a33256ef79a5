"""The base of rules that pick or weigh islands by inner products of their Deltas.

    G[i,j] = <D_i, D_j>,    c = coefficients(G, weights),    D = sum_i c_i D_i

D_i: decoded Delta of island i, all its tensors as one vector. G: K x K for K contributions, fp64 on the CPU; squared
distances are G_ii + G_jj - 2 G_ij. The ranks of an island each hold a shard of every D_i: their tables are added
(`Context.sum_ranks`), so that all ranks get the same c.
All islands must get the same c as well, on whatever hardware: a product of two fp32 values is exact in fp64, and
products are added element by element in one order, so that G has the same bits for any vector width and on a GPU, is
symmetric, and gives equal Deltas a distance of exactly 0. D is made in island order, product and sum rounded apart.
Cost: K payloads at every island (the exchange is a gather) and K fp32 Deltas in memory; K^2 products per parameter.
With fragments each one has a choice of its own.
Raises: ValueError without contributions.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Aggregator, Context, one_rank
from lowcomm.aggregate.mean import Mean
from lowcomm.types import Contribution, Delta, require

LANES = 4096
"""Sums that are kept beside each other, a power of two; how elements are dealt to them is a part of the bits of G."""


@dataclass(frozen=True, kw_only=True)
class GramRule(Aggregator):
    """A rule that maps a Gram table and weights to coefficients."""

    by: Literal["tokens", "uniform"] = "uniform"
    """What an island weighs among those that a rule takes: the same for each, or the tokens that it says it trained."""

    needs: ClassVar[Literal["sum", "each"]] = "each"

    @abstractmethod
    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        """c: one number per contribution, 0 leaves it out, not all 0. gram: fp64 [K, K]; weights sum to 1.

        A pure function whose bits are the same everywhere: math.fsum, not sum, which versions of Python round apart.
        """

    def weights(self, tokens: Sequence[float]) -> list[float]:
        return Mean(by=self.by).weights(tokens)

    def check(self) -> None:
        require(self.by in ("tokens", "uniform"), "sync.aggregator.by", self.by, "tokens or uniform", "use uniform")

    def __call__(self, contributions: Sequence[Contribution]) -> Delta:
        return self._aggregate(contributions, one_rank).delta

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        """The weighted sum; a note names the islands that are taken and those left out."""
        return self._aggregate(contributions, context.sum_ranks)

    def _aggregate(self, contributions: Sequence[Contribution], sum_ranks: Callable[[Tensor], Tensor]) -> Aggregate:
        if not contributions:
            raise ValueError("no contribution to aggregate")
        gram = sum_ranks(gram_table([c.delta for c in contributions]))
        found = self.coefficients(gram, [c.weight for c in contributions])
        pairs = list(zip(contributions, found, strict=True))
        taken = [dataclasses.replace(one, weight=c) for one, c in pairs if c != 0]
        names = ", ".join(str(one.island) for one in taken)
        out = ", ".join(str(one.island) for one, c in pairs if c == 0) or "none"
        note = f"{type(self).__name__}: chosen islands {names}; left out {out}"
        return Aggregate(delta=Mean()(taken), notes=(note,))


def gram_table(deltas: Sequence[Delta]) -> Tensor:
    """<D_i, D_j> for all pairs: fp64 [K, K] on the CPU, with the same bits on every machine."""
    count, device = len(deltas), next(iter(deltas[0].values())).device
    lanes = torch.zeros(count, count, LANES, dtype=torch.float64, device=device)
    for name in deltas[0]:
        flats = [d[name].reshape(-1) for d in deltas]
        for start in range(0, flats[0].numel(), LANES):
            rows = torch.stack([f[start : start + LANES].double() for f in flats])
            lanes[..., : rows.shape[1]].addcmul_(rows[:, None], rows[None])
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0].cpu()
