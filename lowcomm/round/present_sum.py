"""A weighted sum to which only some islands contribute: the others send nothing but their part of the result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.transport.base import BLOCK, Transport, ordered_sum


def sum_present(transport: Transport, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """`Transport.weighted_sum`, with its bits; islands of weight 0 do not send their vectors.

    4 (n - 1) / n B per element go out of an island that contributes, and as many again of every island with its part of
    the sum. vectors, out: as for `weighted_sum`.
    """
    if all(w != 0 for w in weights):
        transport.weighted_sum(vectors, weights, out)
        return
    islands = transport.islands
    size = out.numel() // islands
    empty = torch.empty(0, dtype=torch.uint8, device=out.device)
    rows = [
        [v[k * size : (k + 1) * size].view(torch.uint8) if weights[island] != 0 else empty for k in range(islands)]
        for island, v in zip(transport.local, vectors, strict=True)
    ]
    sizes = [[4 * size if w != 0 else 0 for w in weights] for _ in transport.local]
    scratch = torch.empty(BLOCK, device=out.device)
    parts: list[Tensor] = []
    for came in transport.swap_rows(rows, sizes):
        part = torch.empty(size, device=out.device)
        used = [(row.view(torch.float32), w) for row, w in zip(came, weights, strict=True) if w != 0]
        ordered_sum([v for v, _ in used], [w for _, w in used], part, scratch)
        parts.append(part)
    out.copy_(transport.gather(parts).view(-1))
