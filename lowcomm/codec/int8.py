"""8 bits per element with a scale per block.

Dettmers et al., 8-bit optimizers via block-wise quantization, arXiv 2110.02861 (blocks); INTELLECT-1, arXiv
2412.01152 (int8 pseudo-gradients).

    q_i = round(x_i / s),  s = max |x| of the block / 127 (bf16, rounded up),  x_i is decoded as q_i s

x: the Delta as one flat vector, fp32 [n]; q: `codes`, int8 [n]; s: `scales`, bf16 [ceil(n / block)].
Cost: 64 + n + 2 ceil(n / block) B per payload: 1.0079 B per parameter. With exchange="reduce" an island sends and
receives 2 (n - 1) / n payloads for n islands, with "gather" n - 1.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: symmetric and uniform (their code book is not), which a sum needs no table for; one flat vector, so that a
bias costs one byte per element.
Reduces to: the identity on multiples of a power of two s with |q| <= 127 of which one in each block reaches 127.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.blockwise import Blockwise


@dataclass(frozen=True, kw_only=True)
class Int8(Blockwise):
    """8-bit codes in blocks, 1.008 bytes per parameter."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.INT8
    bits: ClassVar[int] = 8

    def _outside(self, codes: Tensor) -> bool:
        return codes.numel() > 0 and int(codes.view(torch.int8).min()) == -128
