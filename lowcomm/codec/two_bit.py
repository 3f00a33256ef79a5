"""2 bits per element with a scale per block: the levels -3, -1, 1, 3 times the scale.

MuLoCo, arXiv 2505.23725, and SparseLoCo, arXiv 2508.15706 (2-bit pseudo-gradients with error feedback).

    q_i = clamp(round(x_i / 2s + 3/2), 0, 3),  x_i is decoded as (2 q_i - 3) s
    s = 0.625 mean |x| of the block (nearest), or max |x| / 3 (stochastic: clipping would bias it); bf16

x: the Delta as one flat vector, fp32 [n]; q: `codes`, four to a byte; s: `scales`, bf16 [ceil(n / block)].
Cost: 64 + ceil(n / 4) + 2 ceil(n / block) B per payload: 0.258 B per parameter (2 (n - 1) / n payloads each way with
exchange="reduce", n - 1 with "gather", for n islands).
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: levels without a zero and the step that suits a Gaussian best; the papers' code books are not pinned.
Reduces to: with stochastic rounding, the identity on blocks of 3s, s, -s, -3s for a power of two s, if a 3s or -3s is
in each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.blockwise import Blockwise


@dataclass(frozen=True, kw_only=True)
class TwoBit(Blockwise):
    """2-bit codes in blocks, 0.258 bytes per parameter; use it inside ErrorFeedback only."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.TWO_BIT
    bits: ClassVar[int] = 2

    def _impossible_zeros(self, codes: Tensor) -> bool:
        return False  # under scale 0 every level decodes to 0, and stochastic rounding writes 1 or 2
