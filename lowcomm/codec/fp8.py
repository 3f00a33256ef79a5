"""8-bit floats (e4m3) with a scale per block.

Micikevicius et al., FP8 formats for deep learning, arXiv 2209.05433.

    q_i = e4m3(x_i / s),  s = max |x| of the block / 448 (bf16, rounded up),  x_i is decoded as q_i s

x: the Delta as one flat vector, fp32 [n]; q: `codes`, uint8 [n] (the bytes of torch.float8_e4m3fn, ties to even);
s: `scales`, bf16 [ceil(n / block)], before the codes in the body.
Cost: 64 + n + 2 ceil(n / block) B per payload: 1.0079 B per parameter (2 (n - 1) / n payloads each way with
exchange="reduce", n - 1 with "gather", for n islands).
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: a scale per block where the paper has one per tensor; nearest rounding only.
Reduces to: the identity on multiples of a power of two s that e4m3 holds, if one in each block is 448 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.bits import SCALE_CAPS, block_count
from lowcomm_kernels.fp8 import decode_fp8, encode_fp8
from lowcomm_kernels.quantise import Quantised
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.blockwise import CHUNK, check_block, check_scales, zero_blocks
from lowcomm.codec.dense import Dense
from lowcomm.types import PayloadError


@dataclass(frozen=True, kw_only=True)
class Fp8(Dense):
    """e4m3 floats in blocks, 1.008 bytes per parameter."""

    block: int = 256
    """Elements under one scale, a multiple of 16 from 16 to 4096."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.FP8

    @property
    def granule(self) -> int:
        return self.block

    def body_bytes(self, numel: int) -> int:
        return numel + 2 * block_count(numel, self.block)

    def write(self, x: Tensor, body: Tensor, seed: int, offset: int) -> None:
        encode_fp8(x, block=self.block, out=self._split(body, x.numel()))

    def write_fed_back(
        self, x: Tensor, error: Tensor, error_out: Tensor, beta: float, body: Tensor, seed: int, offset: int
    ) -> None:
        torch.mul(error, beta, out=error_out)
        error_out.add_(x)
        self.write(error_out, body, seed, offset)
        self.add(body, error_out, -1.0)

    def read(self, body: Tensor, out: Tensor) -> None:
        decode_fp8(self._split(body, out.numel()), block=self.block, out=out)

    def add(self, body: Tensor, total: Tensor, weight: float) -> None:
        codes, scales = self._split(body, total.numel())
        step = 1024 * self.block  # elements decoded at a time: the scratch stays small
        scratch = torch.empty(min(step, total.numel()), device=total.device)
        for i, start in enumerate(range(0, total.numel(), step)):
            part = total[start : start + step]
            value = scratch[: part.numel()]
            some = Quantised(codes[start : start + step], scales[i * 1024 : (i + 1) * 1024])
            decode_fp8(some, block=self.block, out=value)
            part.add_(value.mul_(weight))

    def examine(self, body: Tensor, numel: int) -> None:
        codes, scales = self._split(body, numel)
        check_scales(scales, SCALE_CAPS[448])
        for start in range(0, numel, CHUNK):
            if bool(((codes[start : start + CHUNK] & 0x7F) == 0x7F).any()):
                raise PayloadError("an fp8 code of the payload is NaN")
        for found in zero_blocks(codes, scales, self.block):
            if bool((found & 0x7F).any()):
                raise PayloadError("a block of the payload has scale 0 but codes that are not those of zeros")

    def _split(self, body: Tensor, numel: int) -> Quantised:
        at = 2 * block_count(numel, self.block)
        return Quantised(body[at:], body[:at].view(torch.int16))

    def check(self) -> None:
        super().check()
        check_block(self.block)
