"""The sum of fp32 vectors as they are: no codec, one reduction on the way.

Bytes per island that contributes: 4 (n - 1) / n per element out, and as many of every island with its part of the sum;
an island of weight 0 sends its part of the sum only. On the CPU each part of a contribution has a checksum of 8 bytes;
whoever adds parts up compares it, and the islands agree, a byte per island and contribution, on whose were altered.
The exchange is then made again without these, from local weights: the sum may lie where a Delta was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import xxhash
from torch import Tensor

from lowcomm.exchange.base import Way
from lowcomm.exchange.roll_call import agree
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.transport import Transport
from lowcomm.transport.base import BLOCK, CHECKSUM_BYTES, Altered, ordered_sum
from lowcomm.types import AlteredError


@dataclass(frozen=True, kw_only=True)
class Sum(Way):
    """The weighted sum; islands that were not sampled do not send their vectors."""

    overwrites: ClassVar[bool] = True

    def carry(self, out: Outgoing, cohort: Cohort) -> Arrived:
        add = self.transport.weighted_sum if cohort.expected is None else partial(sum_present, self.transport)
        altered = add(out.deltas, cohort.weights, out.fragment.mean)
        said = agree(self.transport, altered)
        if bad := {k: why for k, why in said.items() if cohort.weights[k] != 0}:
            raise AlteredError(
                f"round {out.round.index}: contributions of islands {sorted(bad)} were altered on their way. "
                "Nothing was committed: the exchange is made again without them.",
                bad,
            )
        return Arrived(cohort=cohort, updates=[(out.anchors[0], out.fragment.mean)], states=out.states)

    def mean_limit(self, cohort: Cohort) -> float | None:
        return sum(w * n for w, n in zip(cohort.weights, cohort.norms, strict=True) if w != 0)


def sum_present(transport: Transport, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
    """`Transport.weighted_sum`, with its bits; islands of weight 0 do not send their vectors.

    4 (n - 1) / n B per element go out of an island that contributes, and as many again of every island with its part of
    the sum. vectors, out: as for `weighted_sum`.
    """
    if all(w != 0 for w in weights):
        return transport.weighted_sum(vectors, weights, out)
    at_once = transport.sum_present(vectors, weights, out)
    if at_once is not None:
        return at_once
    there, numel = transport.present, out.numel()
    size = -(-numel // len(there))
    empty = torch.empty(0, dtype=torch.uint8, device=out.device)
    cuts = {k: slice(i * size, max(i * size, min((i + 1) * size, numel))) for i, k in enumerate(there)}
    rows = [
        [sealed(v[cuts[k]]) if k in cuts and weights[island] != 0 else empty for k in range(transport.islands)]
        for island, v in zip(transport.local, vectors, strict=True)
    ]
    scratch = torch.empty(BLOCK, device=out.device)
    parts: list[Tensor] = []
    altered: Altered = []
    lengths = {k: 4 * (cut.stop - cut.start) + CHECKSUM_BYTES for k, cut in cuts.items()}
    sizes = [[lengths[k] if w != 0 else 0 for w in weights] for k in transport.local]
    for me, came in zip(transport.local, transport.swap_rows(rows, sizes), strict=True):
        found: dict[int, str] = {}
        used = [(unsealed(row, k, found), w) for k, (row, w) in enumerate(zip(came, weights, strict=True)) if w != 0]
        part = torch.zeros(size, device=out.device)
        ordered_sum([v for v, _ in used], [w for _, w in used], part[: cuts[me].stop - cuts[me].start], scratch)
        parts.append(part)
        altered.append(found)
    table = transport.gather(parts)
    out.copy_(torch.cat([table[k] for k in there])[:numel])
    return altered


def sealed(part: Tensor) -> Tensor:
    """The bytes of a part of a vector, and their checksum."""
    data = part.view(torch.uint8)
    own = xxhash.xxh3_64_digest(data.cpu().numpy().data)
    return torch.cat([data, torch.frombuffer(bytearray(own), dtype=torch.uint8).to(data.device)])


def unsealed(row: Tensor, island: int, found: dict[int, str]) -> Tensor:
    """The part; `found` gets the island whose row is not what it sent."""
    data = row[:-CHECKSUM_BYTES]
    if xxhash.xxh3_64_digest(data.cpu().numpy().data) != bytes(row[-CHECKSUM_BYTES:].cpu().numpy()):
        found[island] = "its contribution was altered on its way: its checksum differs"
    return data.view(torch.float32)
