"""Just One Byte: two losses along a direction that everybody can regenerate, and one byte for what they say.

Zelikman et al., arXiv 2306.10015, on the SPSA of Malladi et al. (MeZO), arXiv 2305.17333.

    g_k = (L_k(w + eps z_k) - L_k(w - eps z_k)) / (2 eps),   w <- w - lr / n  sum_k Q(g_k) z_k

z_k ~ N(0, I): drawn from a seed of (run, step, island, probe), so that each island regenerates all n of them, in chunks
of a tensor; L_k: mean loss of island k's batch, nats per token; Q: fp8 (e4m3) of g_k / unit, 1 byte, to the nearest,
at most 448 units, relative error up to 1/16; n: the islands that took part. Any shape and float dtype of weights, sums
in fp32.
Cost: `probes` bytes to each other island per step, as many from each: (n - 1) * probes B each way. Two forward passes
per probe, and n * probes passes over the weights to regenerate directions. No gradient, no graph, no optimizer state;
the journal of bytes grows by n * probes + 8 B per step: whoever has it and the first weights gets to the same bits.
Raises: ConfigError for a setting out of range.
Deviates: fp8 needs no agreed scale (`unit` shifts its range); weights are perturbed where they are used and put back as
they were, instead of +eps, -2 eps, +eps in place, whose rounding would differ on each island; directions have the bits
of torch's generator, so islands must be devices of one kind (digests tell).
Reduces to: SPSA (MeZO) for one island with `bits` 32; with many probes its mean is the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.local.estimate import Estimate, Loss, fp32_row
from lowcomm.types import require

TOP = 448.0
"""The largest number of fp8 e4m3."""


@dataclass(frozen=True, kw_only=True)
class OneByte(Estimate):
    """Central differences along directions of each island's own, one byte each."""

    bits: Literal[8, 32] = 8
    """Of each scalar: 8 is the method, 32 sends fp32 to compare with."""
    unit: float = 1.0
    """What fp8's 1.0 stands for: numbers from 1/512 to 448 units are kept, larger ones clipped."""

    own_directions: ClassVar[bool] = True

    @property
    def row_bytes(self) -> int:
        return self.probes * self.bits // 8

    def measure(self, loss: Loss, seeds: Sequence[int]) -> tuple[list[float], float]:
        pairs = [(loss(seed, self.eps), loss(seed, -self.eps)) for seed in seeds]
        return [(up - down) / (2 * self.eps) for up, down in pairs], sum(sum(p) for p in pairs) / (2 * len(pairs))

    def write(self, scalars: Sequence[float]) -> Tensor:
        if self.bits == 32:
            return fp32_row(scalars)
        values = torch.tensor(scalars, dtype=torch.float32) / self.unit
        return values.clamp(-TOP, TOP).to(torch.float8_e4m3fn).view(torch.uint8)  # NaN stays NaN

    def read(self, rows: Tensor) -> Tensor:
        if self.bits == 32:
            return rows.contiguous().view(torch.float32).double()
        return rows.contiguous().view(torch.float8_e4m3fn).to(torch.float32).double() * self.unit

    def check(self) -> None:
        super().check()
        name = "inner.optimizer.estimate"
        require(self.bits in (8, 32), f"{name}.bits", self.bits, "8 or 32", "8 is one byte")
        ok = math.isfinite(self.unit) and self.unit > 0
        require(ok, f"{name}.unit", self.unit, "a finite number above 0", "1.0 suits gradients of norm 0.01 to 100")
