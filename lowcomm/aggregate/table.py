"""The Gram table of Deltas, G[i,j] = <D_i, D_j>, of whole weights and of LoRA adapters.

Whole weights: a product of two fp32 values is exact in fp64, and products are added element by element in one order,
so that G has the same bits for any vector width and on a GPU, is symmetric, and equal Deltas are exactly 0 apart.
Adapters: D_i = B A - B_i A_i, what the island changed dW by, over alpha / r, as one rank-2r product of its factors:

    D_i = [dB_i, B_i] [A; dA_i],    <D_i, D_j> = sum of ([dB_i, B_i]' [dB_j, B_j]) * ([A; dA_i] [A; dA_j]')

A, B: the anchor's factors, A [r, in], B [out, r]; dA_i, dB_i: Deltas of the island's. No matrix [out, in] is made, and
factors of another basis (B_i Q, Q^-1 A_i) give the same table. In fp64 by matrix products, whose last bits differ
between kinds of machines; coefficients are rounded to fp32 before they weigh anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lowcomm_kernels.inner_products import LANES, add_products, fold_lanes, no_lanes
from torch import Tensor

from lowcomm.aggregate.lora.rule import pairs_of
from lowcomm.types import Delta

PART = 16 * LANES
"""Elements of all Deltas that are laid beside each other at a time: 2 MiB for eight, which stay in a core's cache."""


def table_of(deltas: Sequence[Delta], start: Delta) -> Tensor:
    """fp64 [K, K] on the CPU; start: the anchor that the Deltas were taken from."""
    pairs = pairs_of(deltas[0])
    if not pairs:
        return gram_table(deltas)
    factors = {name for pair in pairs for name in (pair.a, pair.b)}
    rest = [{name: t for name, t in d.items() if name not in factors} for d in deltas]
    table = gram_table(rest) if rest[0] else torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for pair in pairs:
        da, db = [d[pair.a] for d in deltas], [d[pair.b] for d in deltas]
        table += _products(da, db, start[pair.a], start[pair.b]).cpu()
    return (table + table.T) / 2


def _products(da: Sequence[Tensor], db: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """<D_i, D_j> of one layer."""
    count, width = len(da), 2 * a.shape[0]
    left = torch.cat([part.double() for d in db for part in (d, b - d)], dim=1)
    right = torch.cat([part.double() for d in da for part in (a, d)])
    both = (left.T @ left) * (right @ right.T)
    return both.view(count, width, count, width).sum(dim=(1, 3))


def gram_table(deltas: Sequence[Delta]) -> Tensor:
    """<D_i, D_j> for all pairs: fp64 [K, K] on the CPU, with the same bits on every machine."""
    lanes = no_lanes(len(deltas), next(iter(deltas[0].values())).device)
    for name in deltas[0]:
        flats = [d[name].reshape(-1) for d in deltas]
        for start in range(0, flats[0].numel(), PART):
            add_products(torch.stack([f[start : start + PART] for f in flats]), lanes)
    return fold_lanes(lanes)
