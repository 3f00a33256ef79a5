"""4 bits per element with a scale per block, two codes to a byte.

Streaming DiLoCo, arXiv 2501.18512 (4-bit outer gradients, fp32 accumulation).

    q_i = round(x_i / s),  s = max |x| of the block / 7 (bf16, rounded up),  x_i is decoded as q_i s

x: the Delta as one flat vector, fp32 [n]; q: `codes`, 4-bit integers in -7 ... 7; s: `scales`, bf16.
Cost: 64 + ceil(n / 2) + 2 ceil(n / block) B per payload: 0.5079 B per parameter (2 (n - 1) / n payloads each way
with exchange="reduce", n - 1 with "gather", for n islands).
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: the paper sends E3M0 floats; integers under a scale per block of 256 lose less of a Gaussian.
Reduces to: the identity on multiples of a power of two s with |q| <= 7 of which one in each block reaches 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.blockwise import Blockwise


@dataclass(frozen=True, kw_only=True)
class Int4(Blockwise):
    """4-bit codes in blocks, 0.508 bytes per parameter; wrap it in ErrorFeedback."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.INT4
    bits: ClassVar[int] = 4

    def _outside(self, codes: Tensor) -> bool:
        # four at a time: with -8 flipped to 0, a nibble of 0 borrows into its high bit when 1 is taken from each
        even = codes.numel() // 2 * 2
        flipped = codes[:even].view(torch.int16) ^ -0x7778
        if bool(((flipped - 0x1111) & ~flipped & -0x7778).any()):
            return True
        last = int(codes[-1]) if codes.numel() % 2 else 0
        return last & 0x0F == 0x08 or last & 0xF0 == 0x80
