"""All entries above a threshold: as many as there are, so the payload's size varies.

Strom, Scalable distributed DNN training, Interspeech 2015; Aji and Heafield, arXiv 1704.05021 (gradient dropping).

    I = {i : |x_i| >= tau},   x_i is decoded as Q(x_i) for i in I, else 0

x: the Delta as one flat vector, fp32 [n], on the CPU; tau: `rms` times the root mean square of x, so that it needs no
tuning to the size of the Delta; Q: `bits` per value, a 16-bit scale per 4096 of them; I: Elias-Fano coded over the
whole vector.
Cost: 64 + 8 + m (bits + 2 + log2(n / m)) / 8 B per payload for m entries, n - 1 payloads each way for n islands; sizes
are exchanged first, 8 B.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: tau follows the Delta's own size where Strom fixes it; the mean of squares is summed in fp64 in a fixed order.
Reduces to: the identity for rms = 0 on values that `bits` can hold (bits=16: bfloat16 values).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from lowcomm_kernels.topk import Chunks, threshold
from torch import Tensor

from lowcomm.codec import elias_fano, wire
from lowcomm.codec.base import State
from lowcomm.codec.flat import count
from lowcomm.codec.sparse import VALUE_CHUNK, Pieces, Sparse, as_type
from lowcomm.types import Delta, PayloadError, Round, require

PART = 4096
"""Elements whose indices the kernel counts from 0."""
SUMMED = 1 << 16
"""Elements squared and summed at a time."""


@dataclass(frozen=True, kw_only=True)
class Threshold(Sparse):
    """Every entry of at least `rms` times the root mean square."""

    rms: float = 3.0
    """The threshold as a multiple of the Delta's root mean square; 3 keeps 0.3 % of a Gaussian."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.THRESHOLD
    fixed_size: ClassVar[bool] = False

    def split(self, flat: Tensor, like: Delta, state: State, round: Round) -> Pieces:
        here = flat.cpu()
        bound = min(self.rms * root_mean_square(here), float(torch.finfo(torch.float32).max))
        found = threshold(here, bound if math.isfinite(bound) else 0.0, chunk=PART)
        base = torch.arange(found.counts.numel()).repeat_interleave(found.counts.long()) * PART
        places = base + found.indices.to(torch.int64)
        number = torch.tensor([places.numel()], dtype=torch.int64).view(torch.uint8)
        side = torch.cat([number, elias_fano.encode(places, flat.numel())])
        return Pieces(side=side.to(flat.device), values=found.values.to(flat.device), state=state)

    def side_bytes(self, body: Tensor, like: Delta) -> int:
        kept = self._kept(body, like)
        return 8 + sum(elias_fano.sizes(count(like), kept)[1:])

    def value_chunks(self, side: Tensor, like: Delta) -> Chunks:
        return Chunks(self._kept(side, like), VALUE_CHUNK, VALUE_CHUNK)

    def places(self, side: Tensor, like: Delta, seed: int) -> Tensor:
        return elias_fano.decode(side[8:], count(like), self._kept(side, like)).to(side.device)

    def init(self, like: Delta) -> State:
        return {}

    def check(self) -> None:
        super().check()
        ok = math.isfinite(self.rms) and self.rms >= 0
        require(ok, "codec.rms", self.rms, "a finite number, 0 or more", "3 keeps well under 5 %")

    def _kept(self, side: Tensor, like: Delta) -> int:
        if side.numel() < 8:
            raise PayloadError(f"the payload's body has {side.numel()} bytes, the number of its entries alone needs 8")
        kept = int(as_type(side[:8], torch.int64))
        if not 0 <= kept <= count(like):
            raise PayloadError(f"the payload says that it holds {kept} entries, expected 0 to {count(like)}")
        return kept


def root_mean_square(flat: Tensor) -> float:
    """Of fp32 [n] on the CPU, summed in fp64 one stretch after the other: the same for any number of threads."""
    x, total = flat.numpy(), 0.0
    for start in range(0, len(x), SUMMED):
        total += float(np.square(x[start : start + SUMMED], dtype=np.float64).sum())
    return math.sqrt(total / max(1, len(x)))
