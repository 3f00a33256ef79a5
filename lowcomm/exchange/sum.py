"""The sum of fp32 vectors as they are: no codec, one reduction on the way.

Bytes per island that contributes: 4 (n - 1) / n per element out, and as many of every island with its part of the sum;
an island of weight 0 sends its part of the sum only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.exchange.base import Way
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.transport import Transport
from lowcomm.transport.base import BLOCK, ordered_sum


@dataclass(frozen=True, kw_only=True)
class Sum(Way):
    """The weighted sum; islands that were not sampled do not send their vectors."""

    overwrites: ClassVar[bool] = True

    def carry(self, out: Outgoing, cohort: Cohort) -> Arrived:
        if cohort.expected is not None:
            sum_present(self.transport, out.deltas, cohort.weights, out.fragment.mean)
        else:
            self.transport.weighted_sum(out.deltas, cohort.weights, out.fragment.mean)
        return Arrived(cohort=cohort, updates=[(out.anchors[0], out.fragment.mean)], states=out.states)

    def mean_limit(self, cohort: Cohort) -> float | None:
        return sum(w * n for w, n in zip(cohort.weights, cohort.norms, strict=True) if w != 0)


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
